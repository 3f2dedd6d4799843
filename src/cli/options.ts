/** Parsers of option values. Each throws `PT_BAD_ARGUMENT`, which the CLI shows as an error of usage. */
import { checkGuestName, NAME_PATTERN } from '../agent/names.ts';
import { HINT_LIMIT_MS } from '../directory/hint.ts';
import { formatDuration, parseDuration, parseSize } from '../agent/units.ts';
import { usage } from './failure.ts';

/** A guest's name. */
export const guestName = (text: string): string => checkGuestName(text);

/** A domain's name. */
export function domainName(text: string): string {
  if (NAME_PATTERN.test(text)) return text;
  throw usage(
    `"${text.slice(0, 80)}" cannot be a domain's name`,
    'Small letters, digits and dashes, 63 at most, beginning with a letter or digit.',
  );
}

/** `256M` and the like, in bytes. */
export function size(text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined || bytes === 0) throw usage(`"${text}" is no size`, 'E.g. 256M, 4G or a number of bytes.');
  return bytes;
}

/** `100M` and the like, in bytes a second; as the configuration has it. */
export function rate(text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined || bytes < 65_536)
    throw usage(`"${text}" is no rate`, 'Bytes a second, 64K at least, e.g. 100M.');
  return bytes;
}

/** `2h` and the like, in milliseconds: more than 0, and `most` at most. */
export function duration(most: number): (text: string) => number {
  return (text) => {
    const ms = parseDuration(text);
    if (ms === undefined) throw usage(`"${text}" is no time`, 'E.g. 90s, 15m, 2h, 1d.');
    if (ms <= 0 || ms > most) throw usage(`"${text}" is not more than 0 and at most ${formatDuration(most)}`);
    return ms;
  };
}

/** How long a plan is in force, in milliseconds. */
export const planTime = duration(HINT_LIMIT_MS);

/** A whole number from `low` to `high`. */
export function whole(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= low && value <= high) return value;
    throw usage(`"${text}" is no whole number from ${low} to ${high}`);
  };
}

/** A number from `low` to `high`. */
export function between(low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+(\.\d+)?$/.test(text) && value >= low && value <= high) return value;
    throw usage(`"${text}" is no number from ${low} to ${high}`);
  };
}

/** URL of an agent as other agents reach it. */
export function peerUrl(text: string): string {
  let url: URL | undefined;
  try {
    url = new URL(text);
  } catch {
    // said below
  }
  const http = url?.protocol === 'http:' || url?.protocol === 'https:';
  if (url !== undefined && http && url.pathname === '/' && url.search === '' && url.username === '') return url.origin;
  throw usage(
    `"${text}" is no URL of an agent`,
    'E.g. https://host-b:7411, or http://127.0.0.1:7412 on the same host.',
  );
}
