/** Values that may have to be waited for. Whatever answers at once must not cost a turn of the event loop. */
import type { MaybePromise } from '../meta/engine.ts';

export type { MaybePromise };

/** `f(value)`, now when the value is there. */
export function then<T, U>(value: MaybePromise<T>, f: (value: T) => MaybePromise<U>): MaybePromise<U> {
  return value instanceof Promise ? value.then(f) : f(value);
}

/** `f(error)` for what `work` throws or rejects with. */
export function recover<T>(work: () => MaybePromise<T>, f: (error: unknown) => MaybePromise<T>): MaybePromise<T> {
  let value: MaybePromise<T>;
  try {
    value = work();
  } catch (error) {
    return f(error);
  }
  return value instanceof Promise ? value.catch(f) : value;
}
