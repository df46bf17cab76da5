/** Numbers of Linux that the file system deals in (x86-64 and arm64 alike). */
export const O_TRUNC = 0o1000;
export const O_EXCL = 0o200;
export const O_APPEND = 0o2000;

/** linux/fuse.h */
export const FOPEN_DIRECT_IO = 1;
export const FOPEN_KEEP_CACHE = 2;
export const FOPEN_NONSEEKABLE = 4;
export const FOPEN_CACHE_DIR = 8;

export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;
export const RENAME_WHITEOUT = 4;

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/** linux/falloc.h */
export const FALLOC_KEEP_SIZE = 1;
export const FALLOC_PUNCH_HOLE = 2;
export const FALLOC_ZERO_RANGE = 16;

/** linux/fs.h */
export const FS_IOC_GETFLAGS = 0x80086601;
export const FS_IOC_SETFLAGS = 0x40086602;
/** struct fsxattr: xflags u32, extsize u32, nextents u32, projid u32, cowextsize u32, 8 bytes of padding. */
export const FS_IOC_FSGETXATTR = 0x801c581f;
export const FS_IOC_FSSETXATTR = 0x401c5820;
export const FSXATTR_BYTES = 28;
export const FS_XFLAG_IMMUTABLE = 0x8;
export const FS_XFLAG_APPEND = 0x10;
export const FS_SECRM_FL = 0x1;
export const FS_IMMUTABLE_FL = 0x10;
export const FS_APPEND_FL = 0x20;

export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLRDNORM = 0x40;
export const POLLWRNORM = 0x100;
