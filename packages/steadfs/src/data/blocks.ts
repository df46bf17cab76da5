/** Names and sizes of a slice's objects (spec/volume.md §5). */

export interface BlockLayout {
  /** "NAME/" */
  prefix: string;
  /** Bytes. */
  blockSize: number;
  hashPrefix: boolean;
}

export function blockCount(layout: BlockLayout, size: number): number {
  return Math.ceil(size / layout.blockSize);
}

/** Bytes of block `indx` of a slice of `size` bytes. */
export function blockLength(layout: BlockLayout, size: number, indx: number): number {
  return Math.min(layout.blockSize, size - indx * layout.blockSize);
}

export function blockKey(layout: BlockLayout, id: number, size: number, indx: number): string {
  const millions = Math.floor(id / 1_000_000);
  const name = `${id}_${indx}_${blockLength(layout, size, indx)}`;
  return layout.hashPrefix
    ? `${layout.prefix}chunks/${(id % 256).toString(16).toUpperCase().padStart(2, '0')}/${millions}/${name}`
    : `${layout.prefix}chunks/${millions}/${Math.floor(id / 1000)}/${name}`;
}

export function sliceKeys(layout: BlockLayout, id: number, size: number): string[] {
  return Array.from({ length: blockCount(layout, size) }, (_, i) => blockKey(layout, id, size, i));
}
