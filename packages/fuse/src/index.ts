export * from './capsule-types.ts';
export * from './errno.ts';
export * from './types.ts';
