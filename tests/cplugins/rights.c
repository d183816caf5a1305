/* A program that fails with 9 if it has root's rights. */

#include <unistd.h>

int
main (void)
{
  return geteuid () == 0 ? 9 : 0;
}
