//! `struct nbdkit_plugin`: the table of callbacks that a plugin returns. Its layout is the stable
//! interface: members are only added, at the end, and each stays where it is; the size in front
//! says which there are.

#![expect(unsafe_code, reason = "reads a structure that another language filled")]

use std::ffi::{CStr, c_char, c_int, c_void};

/// An opaque list of extents.
pub type ExtentsPointer = *mut c_void;
/// An opaque list of exports.
pub type ExportsPointer = *mut c_void;

/// A text of the library's, or null.
pub type Text = *const c_char;
/// What `open` returned.
pub type Handle = *mut c_void;
/// Takes nothing and cannot fail.
pub type Callback = Option<unsafe extern "C" fn()>;
/// Returns 0, or -1 for failure.
pub type Step = Option<unsafe extern "C" fn() -> c_int>;
/// Answers about a handle; -1 for failure.
pub type Ask = Option<unsafe extern "C" fn(Handle) -> c_int>;
/// `trim`, `zero` and `cache`: count, offset, flags.
pub type Range = Option<unsafe extern "C" fn(Handle, u32, u64, u32) -> c_int>;
/// `pread` of version 1: buffer, count, offset.
pub type ReadV1 = Option<unsafe extern "C" fn(Handle, *mut c_void, u32, u64) -> c_int>;
/// `pwrite` of version 1: buffer, count, offset.
pub type WriteV1 = Option<unsafe extern "C" fn(Handle, *const c_void, u32, u64) -> c_int>;
/// `trim` of version 1: count, offset.
pub type TrimV1 = Option<unsafe extern "C" fn(Handle, u32, u64) -> c_int>;
/// `zero` of version 1: count, offset, whether it may trim.
pub type ZeroV1 = Option<unsafe extern "C" fn(Handle, u32, u64, c_int) -> c_int>;
/// `pread`: buffer, count, offset, flags.
pub type Read = Option<unsafe extern "C" fn(Handle, *mut c_void, u32, u64, u32) -> c_int>;
/// `pwrite`: buffer, count, offset, flags.
pub type Write = Option<unsafe extern "C" fn(Handle, *const c_void, u32, u64, u32) -> c_int>;
/// `extents`: count, offset, flags, list.
pub type ExtentsOf = Option<unsafe extern "C" fn(Handle, u32, u64, u32, ExtentsPointer) -> c_int>;
/// `block_size`: minimum, preferred and maximum, to be written.
pub type BlockSizeOf = Option<unsafe extern "C" fn(Handle, *mut u32, *mut u32, *mut u32) -> c_int>;

/// Defines the structure, and asserts where each member is.
macro_rules! table {
    ($name:ident, $size:literal, $($offset:literal $member:ident: $type:ty,)*) => {
        /// `struct nbdkit_plugin`; nbdkit-plugin(3) about the members. Absent ones are null.
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        #[expect(missing_docs, reason = "nbdkit-plugin(3) has them")]
        pub struct $name {
            $(pub $member: $type,)*
        }

        #[cfg(target_pointer_width = "64")]
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(std::mem::offset_of!($name, $member) == $offset);)*
        };
    };
}

table! { PluginTable, 384,
    0 struct_size: u64,
    8 api_version: c_int,
    12 thread_model_limit: c_int,
    16 name: Text,
    24 longname: Text,
    32 version: Text,
    40 description: Text,
    48 load: Callback,
    56 unload: Callback,
    64 config: Option<unsafe extern "C" fn(Text, Text) -> c_int>,
    72 config_complete: Step,
    80 config_help: Text,
    88 open: Option<unsafe extern "C" fn(c_int) -> Handle>,
    96 close: Option<unsafe extern "C" fn(Handle)>,
    104 get_size: Option<unsafe extern "C" fn(Handle) -> i64>,
    112 can_write: Ask,
    120 can_flush: Ask,
    128 is_rotational: Ask,
    136 can_trim: Ask,
    144 pread_v1: ReadV1,
    152 pwrite_v1: WriteV1,
    160 flush_v1: Ask,
    168 trim_v1: TrimV1,
    176 zero_v1: ZeroV1,
    184 errno_is_preserved: c_int,
    192 dump_plugin: Callback,
    200 can_zero: Ask,
    208 can_fua: Ask,
    216 pread: Read,
    224 pwrite: Write,
    232 flush: Option<unsafe extern "C" fn(Handle, u32) -> c_int>,
    240 trim: Range,
    248 zero: Range,
    256 magic_config_key: Text,
    264 can_multi_conn: Ask,
    272 can_extents: Ask,
    280 extents: ExtentsOf,
    288 can_cache: Ask,
    296 cache: Range,
    304 thread_model: Step,
    312 can_fast_zero: Ask,
    320 preconnect: Option<unsafe extern "C" fn(c_int) -> c_int>,
    328 get_ready: Step,
    336 after_fork: Step,
    344 list_exports: Option<unsafe extern "C" fn(c_int, c_int, ExportsPointer) -> c_int>,
    352 default_export: Option<unsafe extern "C" fn(c_int, c_int) -> Text>,
    360 export_description: Option<unsafe extern "C" fn(Handle) -> Text>,
    368 cleanup: Callback,
    376 block_size: BlockSizeOf,
}

impl PluginTable {
    /// Copies as much of the table as there is; what an older plugin does not have is absent.
    ///
    /// # Safety
    /// `table` points to a `struct nbdkit_plugin`: at least its first member, and as many bytes as
    /// that says.
    pub unsafe fn copy(table: *const c_void) -> PluginTable {
        let mut copy = std::mem::MaybeUninit::<PluginTable>::zeroed();
        // SAFETY: the first member is there, as the caller promises; it need not be aligned for
        // this.
        let there = unsafe { table.cast::<u64>().read_unaligned() };
        let size = usize::try_from(there).unwrap_or(usize::MAX).min(size_of::<PluginTable>());
        // SAFETY: `size` is within what the caller promises and within the copy, which is new and
        // elsewhere. All bits zero are a valid value of every member, and so is what the plugin put
        // there.
        unsafe {
            copy.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(table.cast(), size);
            copy.assume_init()
        }
    }

    /// The members that there are, in nbdkit's order and by its names, for `--dump-plugin`.
    pub fn members(&self) -> Vec<&'static str> {
        macro_rules! there {
            ($($member:ident)*) => { [$((stringify!($member), self.$member.is_some()),)*] };
        }
        let texts =
            [("longname", !self.longname.is_null()), ("description", !self.description.is_null())];
        let before = there!(load unload dump_plugin config config_complete);
        let help = [("config_help", !self.config_help.is_null())];
        let rest = there!(thread_model get_ready after_fork cleanup preconnect list_exports
            default_export open close export_description get_size block_size can_write can_flush
            is_rotational can_trim can_zero can_fast_zero can_extents can_fua can_multi_conn can_cache
            pread pwrite flush trim zero extents cache);
        let v1 = [
            ("_pread_v1", self.pread_v1.is_some()),
            ("_pwrite_v1", self.pwrite_v1.is_some()),
            ("_flush_v1", self.flush_v1.is_some()),
            ("_trim_v1", self.trim_v1.is_some()),
            ("_zero_v1", self.zero_v1.is_some()),
        ];
        let all = texts.iter().chain(&before).chain(&help).chain(&rest).chain(&v1);
        all.filter(|(_, there)| *there).map(|(name, _)| *name).collect()
    }
}

/// A text of the table, which is taken as it is except that what is not UTF-8 is replaced.
///
/// # Safety
/// `text` is null or ends with a null byte.
pub unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so it ends with a null byte, as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_beyond_the_size_are_absent() {
        unsafe extern "C" fn step() -> c_int {
            7
        }
        // SAFETY: all bits zero are a valid table.
        let mut table: PluginTable = unsafe { std::mem::zeroed() };
        table.config_complete = Some(step);
        table.get_ready = Some(step);
        for (size, get_ready) in [(0, false), (320, false), (336, true), (384, true), (9999, true)]
        {
            table.struct_size = size;
            // SAFETY: a whole table, and what is asked for beyond is not read.
            let copy = unsafe { PluginTable::copy((&raw const table).cast()) };
            assert_eq!(copy.get_ready.is_some(), get_ready, "{size}");
            assert_eq!(copy.config_complete.is_some(), size >= 80, "{size}");
        }
    }
}
