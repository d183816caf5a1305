/* A plugin in C that declares what it needs: serves a text file as a disk, read-only, converted to UTF-8.
 *
 *     nbdkit ./nbdkit-textfile-plugin.so file=PATH [charset=ISO-8859-1]
 *
 * Every client gets what the file has when it connects.
 */

#define NBDKIT_API_VERSION 2

#include <nbdkit-plugin.h>
#include <nbdkit-confine.h>

#include <fcntl.h>
#include <iconv.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Bytes of a file that is served. */
#define MOST (16 << 20)

static char *file;
static const char *charset = "ISO-8859-1";

/* What a client has open. */
struct text {
  char *bytes;
  size_t size;
};

static int
textfile_config (const char *key, const char *value)
{
  if (strcmp (key, "file") == 0) {
    free (file);
    file = nbdkit_absolute_path (value);
    return file != NULL ? 0 : -1;
  }
  if (strcmp (key, "charset") == 0) {
    charset = value;
    return 0;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
textfile_config_complete (void)
{
  if (file != NULL)
    return 0;
  nbdkit_error ("file=PATH is missing");
  return -1;
}

static void
textfile_unload (void)
{
  free (file);
}

/* Called after textfile_config_complete. textfile_open opens this, and nothing else. */
static int
textfile_needs (const struct nbdkitd_needs *needs, int readonly)
{
  (void) readonly;
  return needs->path (needs, file, NBDKITD_READ);
}

/* The C library loads the code of a converter with the first iconv_open that asks for it, and keeps it while one is open.
 * A confined process can load no code.
 */
static int
textfile_warm_up (void)
{
  if (iconv_open ("UTF-8", charset) != (iconv_t) -1)
    return 0;
  nbdkit_error ("charset=%s: %m", charset);
  return -1;
}

const struct nbdkitd_declaration nbdkitd_declaration = {
  NBDKITD_DECLARATION_VERSION,
  sizeof (struct nbdkitd_declaration),
  0,
  NBDKITD_ISOLATION_CONNECTION,
  0,
  textfile_needs,
  textfile_warm_up
};

static char *
read_file (size_t *size)
{
  struct stat status;
  char *bytes = NULL;
  ssize_t count;
  const int fd = open (file, O_RDONLY | O_CLOEXEC);

  if (fd == -1) {
    nbdkit_error ("open: %s: %m", file);
    return NULL;
  }
  if (fstat (fd, &status) == -1 || status.st_size > MOST)
    nbdkit_error ("%s: cannot be served as a text", file);
  else if ((bytes = malloc ((size_t) status.st_size + 1)) == NULL)
    nbdkit_error ("malloc: %m");
  else if ((count = read (fd, bytes, (size_t) status.st_size)) == -1) {
    nbdkit_error ("read: %s: %m", file);
    free (bytes);
    bytes = NULL;
  }
  else
    *size = (size_t) count;
  close (fd);
  return bytes;
}

/* Converts all of a text. A character becomes at most four bytes. */
static int
convert (struct text *text, char *from, size_t size)
{
  size_t room = 4 * size + 4;
  char *to;
  const iconv_t converter = iconv_open ("UTF-8", charset);

  if (converter == (iconv_t) -1) {
    nbdkit_error ("charset=%s: %m", charset);
    return -1;
  }
  text->bytes = to = malloc (room);
  if (to == NULL || iconv (converter, &from, &size, &to, &room) == (size_t) -1) {
    nbdkit_error ("%s: %m", file);
    free (text->bytes);
    iconv_close (converter);
    return -1;
  }
  text->size = (size_t) (to - text->bytes);
  iconv_close (converter);
  return 0;
}

static void *
textfile_open (int readonly)
{
  size_t size = 0;
  struct text *text = malloc (sizeof *text);
  char *bytes = text != NULL ? read_file (&size) : NULL;

  (void) readonly;
  if (bytes == NULL || convert (text, bytes, size) == -1) {
    free (text);
    text = NULL;
  }
  free (bytes);
  return text;
}

static void
textfile_close (void *handle)
{
  struct text *text = handle;

  free (text->bytes);
  free (text);
}

static int64_t
textfile_get_size (void *handle)
{
  const struct text *text = handle;

  return (int64_t) text->size;
}

static int
textfile_pread (void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct text *text = handle;

  (void) flags;
  memcpy (buf, text->bytes + offset, count);
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "textfile",
  .longname = "example: a text as a disk",
  .description = "Serves a text file as a read-only disk, converted to UTF-8.",
  .config = textfile_config,
  .config_complete = textfile_config_complete,
  .config_help = "file=<PATH>      (required) The text.\n"
                 "charset=<NAME>   Its character set (default: ISO-8859-1).",
  .magic_config_key = "file",
  .unload = textfile_unload,
  .open = textfile_open,
  .close = textfile_close,
  .get_size = textfile_get_size,
  .pread = textfile_pread,
  .errno_is_preserved = 1
};

NBDKIT_REGISTER_PLUGIN (plugin)
