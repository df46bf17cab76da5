/** The volume setting record (spec/volume.md §1): its fields in the order in which they are stored. */

export interface Tier {
  ID: number;
  StorageClass: string;
  Tag: string;
}

/** JSON names as stored, so that the record and this object are the same thing. Secrets are plain text here, encrypted only in the database. */
export interface Format {
  Name: string;
  UUID: string;
  Storage: string;
  StorageClass?: string;
  Tiers: Record<string, Tier> | null;
  Bucket: string;
  AccessKey?: string;
  SecretKey?: string;
  SessionToken?: string;
  /** KiB */
  BlockSize: number;
  Compression?: string;
  Shards?: number;
  HashPrefix?: boolean;
  Capacity?: number;
  Inodes?: number;
  EncryptKey?: string;
  EncryptAlgo?: string;
  KeyEncrypted?: boolean;
  UploadLimit?: number;
  DownloadLimit?: number;
  TrashDays: number;
  MetaVersion?: number;
  MinClientVersion?: string;
  MaxClientVersion?: string;
  DirStats?: boolean;
  UserGroupQuota?: boolean;
  EnableACL: boolean;
  RangerRestUrl?: string;
  RangerService?: string;
  ChangeLog?: boolean;
  ChangeLogMaxAge?: number;
  ChangeLogMaxLines?: number;
  KerbConf?: string;
}
