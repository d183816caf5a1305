//! nbdkit-ext2-filter(1): serves a file inside an ext2, ext3 or ext4 file system, by libext2fs.
//!
//! A file of its own, which only those load who name it. In the process of each client where none
//! may write, and in one process for all where some may: a file system has one writer.
//!
//! - [`callbacks`]: the table of nbdkit-filter(3), and the declaration of nbdkit-confine.h;
//! - [`mounted`]: which file system a client has;
//! - [`filesystem`]: a file system and its open files, by libext2fs; [`superblock`]: what is looked
//!   at before;
//! - [`channel`]: how the library reaches its disk; [`below`]: which is the layer below;
//! - [`ffi`]: what is used of the library.

#![deny(unsafe_code)]

mod below;
mod callbacks;
mod channel;
mod ffi;
mod filesystem;
mod mounted;
mod superblock;
