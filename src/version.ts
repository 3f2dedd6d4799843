/** The version of this package, read from its package.json. */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** `version` of the package that this file belongs to. */
export function packageVersion(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  // from src/ and from dist/src/
  for (const up of ['..', '../..']) {
    const path = join(here, up, 'package.json');
    if (!existsSync(path)) continue;
    const { name, version } = JSON.parse(readFileSync(path, 'utf8')) as { name?: string; version?: string };
    if (name === 'pagetide' && version !== undefined) return version;
  }
  return '0.0.0';
}
