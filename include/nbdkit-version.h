/* The version of nbdkit whose interface these headers describe.
 * nbdkit-plugin(3), "Compile-time version of nbdkit".
 */

#ifndef NBDKIT_VERSION_H
#define NBDKIT_VERSION_H

#define NBDKIT_VERSION_MAJOR 1
#define NBDKIT_VERSION_MINOR 46
#define NBDKIT_VERSION_MICRO 0
#define NBDKIT_VERSION_STRING "1.46.0"

#endif /* NBDKIT_VERSION_H */
