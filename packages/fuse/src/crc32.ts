/**
 * CRC-32 as in zlib (polynomial 0xedb88320 reflected, initial value and final xor 0xffffffff). Of its own because what is summed up here is short, and node:zlib
 * takes 3 ms to load, for which everybody on a mount would wait after a crash.
 */
const TABLE = Int32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

/** Unsigned. */
export function crc32(bytes: Uint8Array, from = 0, to = bytes.length): number {
  let crc = -1;
  for (let i = from; i < to; i++) crc = TABLE[(crc ^ bytes[i]!) & 255]! ^ (crc >>> 8);
  return ~crc >>> 0;
}
