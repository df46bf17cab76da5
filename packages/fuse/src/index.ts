export * from './abi.ts';
export { attributes, attributesOf } from './attributes.ts';
export {
  CapsuleError,
  type CapsuleFds,
  type CapsuleOptions,
  createCapsule,
  lockCapsule,
  type OpenCapsule,
  openCapsule,
} from './capsule.ts';
export * from './capsule-types.ts';
export * from './errno.ts';
export { endWhenHung } from './hang.ts';
export { DEFAULT_FLAGS, DUTY_FLAGS, decodeConnection, type InitOptions, negotiate } from './init.ts';
export { mountFuse, unmount } from './mount.ts';
export * from './service-types.ts';
export {
  type FullNotifier,
  type Log,
  type ServeOptions,
  type Session,
  type SessionStats,
  serve,
} from './session.ts';
export { CONNECTION_SECTIONS } from './slots.ts';
export * from './types.ts';
