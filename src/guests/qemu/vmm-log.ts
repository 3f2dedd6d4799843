/** The end of a VMM's own output: what it said before it died is the best reason there is. */
import { open } from 'node:fs/promises';

const TAIL_BYTES = 4096;

/** The last lines of a log that hold something, joined by ` | `; a sentence saying so where there are none. */
export async function logTail(path: string | undefined, lines = 4): Promise<string> {
  const none = path === undefined ? 'it was started elsewhere, look at its own output' : `it wrote nothing to ${path}`;
  if (path === undefined) return none;
  try {
    const file = await open(path, 'r');
    try {
      const { size } = await file.stat();
      const start = Math.max(0, size - TAIL_BYTES);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(TAIL_BYTES), 0, TAIL_BYTES, start);
      const text = buffer.toString('utf8', 0, bytesRead).split('\n');
      // A guest's console may be in there, escapes and all.
      const said = text.map((line) => line.replace(/[\x00-\x1f\x7f]+/g, ' ').trim()).filter((line) => line !== '');
      return said.length === 0 ? none : said.slice(-lines).join(' | ');
    } finally {
      await file.close();
    }
  } catch {
    return none;
  }
}
