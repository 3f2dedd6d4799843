/** URLs of a Redis, as the configuration has them. */

/** Undefined: it is none that is taken. */
export function redisUrl(text: string): URL | undefined {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^rediss?:$/.test(url.protocol) || url.hostname === '') return undefined;
  return /^\/?\d{0,4}$/.test(url.pathname) && url.search === '' && url.hash === '' ? url : undefined;
}

/** For logs, errors and answers: without user and password. */
export function shownUrl(text: string): string {
  const url = redisUrl(text);
  return url === undefined ? 'redis:' : `${url.protocol}//${url.host}${url.pathname.replace(/^\/$/, '')}`;
}
