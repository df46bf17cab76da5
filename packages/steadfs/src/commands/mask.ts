/** Passwords do not get into messages, logs or the process list. */

/** `redis://:secret@host/1` → `redis://:****@host/1`. Also of text that is no URL, as long as it has `:…@`. */
export function maskUrl(url: string): string {
  return url
    .replace(/^([a-z0-9+]+:\/\/[^:@/]*):.*@/i, '$1:****@')
    .replace(/((?:password|secret|token)[^=&]*=)[^&]*/gi, '$1****');
}

/** Hides `url`'s password, wherever a message repeats it. */
export function withoutSecrets(text: string, url: string): string {
  return text.replaceAll(url, maskUrl(url));
}
