// A plugin in C++, made as nbdkit-plugin(3), "Writing plugins in C++", says.

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <cstring>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {
  void *
  plain_open (int)
  {
    return NBDKIT_HANDLE_NOT_NEEDED;
  }

  int64_t
  plain_get_size (void *)
  {
    return 1024;
  }

  int
  plain_pread (void *, void *buf, uint32_t count, uint64_t, uint32_t)
  {
    std::memset (buf, '+', count);
    return 0;
  }

  nbdkit_plugin
  create_plugin ()
  {
    nbdkit_plugin plugin = nbdkit_plugin ();
    plugin.name = "plain";
    plugin.open = plain_open;
    plugin.get_size = plain_get_size;
    plugin.pread = plain_pread;
    return plugin;
  }
}

static struct nbdkit_plugin plugin = create_plugin ();
NBDKIT_REGISTER_PLUGIN (plugin)
