/** Names in a directory. */
import { PagetideError } from '../errors.ts';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
/** As the home of a domain calls it: the name in its certificate, or `unix:PATH` of its control socket. */
const HOST = /^[!-~]{1,255}$/;

/** Of a domain or a guest: letters, digits, `.`, `_`, `-`; 128 at most. @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkName(name: string, what: string): void {
  if (typeof name !== 'string' || !NAME.test(name)) refuse(name, what);
}

/** 1 to 255 printable ASCII characters without spaces. @throws PagetideError `PT_BAD_ARGUMENT` */
export function checkHost(name: string): void {
  if (typeof name !== 'string' || !HOST.test(name)) refuse(name, 'host');
}

function refuse(name: unknown, what: string): never {
  const shown = typeof name === 'string' ? JSON.stringify(name.slice(0, 300)) : typeof name;
  throw new PagetideError('PT_BAD_ARGUMENT', `${shown} cannot be the name of a ${what}`);
}
