/** A host that sends wrong pages by tag: a proxy in front of an honest one changes what passes. */
import { FrameDecoder, FrameFlag, FrameType, encodeFrame } from '../../src/transport/wire.ts';
import { bitmapBytes, decodeTagPages, encodeTagPages } from '../../src/transport/wire-tag-pages.ts';
import { TcpProxy, type Passing } from './tcp-proxy.ts';

/** Where the head of an answer ends. */
const END = '\r\n\r\n';

export interface Liar {
  proxy: TcpProxy;
  /** Pages that were sent wrong so far. */
  wrong: number;
  /** Whether the next page is to be wrong. */
  lies: () => boolean;
}

/** Starts one; set `proxy.target`. Streams of pages by tag are decoded and made anew, with a bit of a page changed. */
export async function startLiar(t: { teardown(fn: () => unknown): unknown }): Promise<Liar> {
  const liar: Liar = { proxy: await TcpProxy.start(t), wrong: 0, lies: () => true };
  const streams = new Map<number, (bytes: Buffer) => Buffer>();
  liar.proxy.alter = (bytes: Buffer, { kind, nth }: Passing) => {
    if (kind !== 'tags') return bytes;
    if (!streams.has(nth)) streams.set(nth, changer(liar));
    return streams.get(nth)!(bytes);
  };
  return liar;
}

function changer(liar: Liar): (bytes: Buffer) => Buffer {
  let out: Buffer[] = [];
  let head: Buffer | undefined = Buffer.alloc(0);
  const decoder = new FrameDecoder('client-tags', 4096, (type, flags, stream, argument, buffer, offset, length) => {
    const payload = Buffer.from(buffer.subarray(offset, offset + length));
    out.push(
      type === FrameType.TagPages
        ? changed(liar, payload, flags, stream, argument)
        : encodeFrame(type, flags, stream, argument, payload),
    );
  });
  return (bytes) => {
    out = [];
    let rest = bytes;
    if (head !== undefined) {
      head = Buffer.concat([head, bytes]);
      const end = head.indexOf(END);
      if (end < 0) return Buffer.alloc(0);
      out.push(head.subarray(0, end + END.length));
      rest = head.subarray(end + END.length);
      head = undefined;
    }
    decoder.feed(rest);
    return Buffer.concat(out);
  };
}

function changed(liar: Liar, payload: Buffer, flags: number, stream: number, count: number): Buffer {
  const { present, pages } = decodeTagPages(payload, flags & FrameFlag.Lz4, count);
  const copy = Buffer.from(Uint8Array.from(pages));
  for (let at = 0; at < copy.length; at += 4096) {
    if (!liar.lies()) continue;
    copy[at + (liar.wrong % 4096)]! ^= 1 << (liar.wrong % 8);
    liar.wrong++;
  }
  return encodeTagPages(
    stream,
    count,
    Uint8Array.from(present.subarray(0, bitmapBytes(count))),
    copy,
    copy.length,
    false,
  );
}
