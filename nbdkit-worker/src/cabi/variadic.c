/* The functions of nbdkit's interface that take a format and variable arguments, which stable Rust cannot define. They
 * only format; Rust does the rest. nbdkit-plugin(3): errno is preserved, and %m is its text.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* In functions/messages.rs and functions/intern.rs. */
extern int worker_wants_debug (void);
extern void worker_message (int is_error, const char *text);
extern const char *worker_intern (const char *text);

void nbdkit_error (const char *msg, ...) __attribute__ ((__format__ (__printf__, 1, 2)));
void nbdkit_verror (const char *msg, va_list args) __attribute__ ((__format__ (__printf__, 1, 0)));
void nbdkit_debug (const char *msg, ...) __attribute__ ((__format__ (__printf__, 1, 2)));
void nbdkit_vdebug (const char *msg, va_list args) __attribute__ ((__format__ (__printf__, 1, 0)));
const char *nbdkit_printf_intern (const char *msg, ...) __attribute__ ((__format__ (__printf__, 1, 2)));
const char *nbdkit_vprintf_intern (const char *msg, va_list args) __attribute__ ((__format__ (__printf__, 1, 0)));

/* The text, in buffer if it fits there, else allocated; NULL if there is no memory for it. errno must still be the
 * caller's.
 */
__attribute__ ((__format__ (__printf__, 1, 0))) static char *
format (const char *msg, va_list args, char *buffer, size_t size)
{
  const int err = errno;
  va_list again;
  char *text = buffer;
  int length;

  va_copy (again, args);
  length = vsnprintf (buffer, size, msg, args);
  if (length < 0)
    text = NULL;
  else if ((size_t) length >= size) {
    text = malloc ((size_t) length + 1);
    if (text != NULL) {
      errno = err;
      vsnprintf (text, (size_t) length + 1, msg, again);
    }
  }
  va_end (again);
  return text;
}

static void
message (int is_error, const char *msg, va_list args)
{
  const int err = errno;
  char buffer[1024];
  char *text = format (msg, args, buffer, sizeof buffer);

  /* Without memory, or with a format that cannot be used, the format itself says most. */
  worker_message (is_error, text != NULL ? text : msg);
  if (text != buffer)
    free (text);
  errno = err;
}

void
nbdkit_verror (const char *msg, va_list args)
{
  message (1, msg, args);
}

void
nbdkit_error (const char *msg, ...)
{
  va_list args;

  va_start (args, msg);
  message (1, msg, args);
  va_end (args);
}

void
nbdkit_vdebug (const char *msg, va_list args)
{
  if (worker_wants_debug ())
    message (0, msg, args);
}

void
nbdkit_debug (const char *msg, ...)
{
  va_list args;

  if (!worker_wants_debug ())
    return;
  va_start (args, msg);
  message (0, msg, args);
  va_end (args);
}

const char *
nbdkit_vprintf_intern (const char *msg, va_list args)
{
  char buffer[1024];
  char *text = format (msg, args, buffer, sizeof buffer);
  const char *kept;

  if (text == NULL) {
    nbdkit_error ("nbdkit_printf_intern: %m");
    return NULL;
  }
  kept = worker_intern (text);
  if (text != buffer)
    free (text);
  return kept;
}

const char *
nbdkit_printf_intern (const char *msg, ...)
{
  va_list args;
  const char *kept;

  va_start (args, msg);
  kept = nbdkit_vprintf_intern (msg, args);
  va_end (args);
  return kept;
}
