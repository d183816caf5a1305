/* A read-only disk of 100 MB with one empty partition: the least that a
 * plugin has. See nbdkit-example1-plugin(1).
 *
 *     nbdkit cc example1.c
 */

#include <stdint.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define SIZE (100 * 1024 * 1024)

/* The end of the first sector: an identifier of the disk, a partition of
 * 204545 sectors from sector 128 on, and the signature.
 */
#define TABLE 440
static const unsigned char table[72] = {
  0xe1, 0x5b, 0x02, 0, 0, 0,
  0, 2, 3, 0, 0x83, 0xbc, 0x31, 0x0c, 128, 0, 0, 0, 0x01, 0x1f, 0x03, 0,
  [70] = 0x55, [71] = 0xaa
};

static void *
example1_open (int readonly)
{
  return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
example1_get_size (void *handle)
{
  return SIZE;
}

static int
example1_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  uint64_t i;

  memset (buf, 0, count);
  for (i = 0; i < sizeof table; ++i)
    if (TABLE + i >= offset && TABLE + i < offset + count)
      ((unsigned char *) buf)[TABLE + i - offset] = table[i];
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name     = "example1",
  .open     = example1_open,
  .get_size = example1_get_size,
  .pread    = example1_pread,
};

NBDKIT_REGISTER_PLUGIN (plugin)
