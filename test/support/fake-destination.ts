/**
 * A destination that starts no guest: it answers a source's questions as it is told to, and takes in what the source tells of its guest.
 * So a source can be tested alone, to the moment before it would hand its guest over, which this destination refuses.
 */
import { once } from 'node:events';
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { PagetideError } from '../../src/errors.ts';
import { migrationKey } from '../../src/migration/arriving-names.ts';
import {
  PEER_PROTOCOL,
  type Capabilities,
  type CopiedRound,
  type IncomingStatus,
  type PrepareRequest,
  type Rest,
} from '../../src/migration/types.ts';
import { native } from '../../src/memory/native.ts';
import { Manifest } from '../../src/pages/manifest.ts';
import { TAG_BYTES, TAG_PAGE } from '../../src/pages/tags.ts';
import { PAGE_PROTOCOL } from '../../src/transport/upgrade.ts';
import { checkManifestEnd, decodeTags } from '../../src/transport/wire-tags.ts';
import { FrameDecoder, FrameType } from '../../src/transport/wire.ts';

export interface FakeDestination {
  readonly url: string;
  /** What it says that it can do. */
  capabilities: Capabilities;
  /** What it answers to a round, once the round's manifest is here: figures, or undefined to be asked again. It may take its time. */
  copied: (round: number, told: number) => Promise<CopiedRound | undefined> | CopiedRound | undefined;
  /** What it was asked, in order: `prepare`, `copy 1`, `load copy`, `abort`. */
  readonly asked: string[];
  /** What the source asked for. */
  readonly prepared: PrepareRequest | undefined;
  /** The manifest as it was told so far; each of its ends was checked. */
  readonly manifest: Manifest | undefined;
  /** Called when the last manifest and the device state are here; the guest stands still. The migration is refused afterwards. */
  onLoad: (rest: Rest, manifest: Manifest, token: string) => void;
}

/** As a real one that fetched every page over a link of so many bytes a millisecond. */
export function fetched(round: number, told: number, bytesAMs: number): CopiedRound {
  const frames = { zero: 0, cache: 0, resident: 0, duplicate: 0, peer: 0, source: told };
  const wireBytes = told * 4_000 + 100;
  return { round, lacking: 0, frames, wireBytes, ms: wireBytes / bytesAMs };
}

/** Whether the pages of `memory` are those that a manifest names, with the key of a migration. */
export function isNamed(memory: Uint8Array, manifest: Manifest, token: string): boolean {
  const key = migrationKey(token);
  try {
    const tags = Buffer.alloc(manifest.frames * TAG_BYTES);
    native().tagPages(key.id, memory, manifest.frames, tags);
    return tags.equals(manifest.tags);
  } finally {
    key.close();
  }
}

export async function fakeDestination(t: { teardown(fn: () => unknown): unknown }): Promise<FakeDestination> {
  const fake = new Fake();
  const server = createServer((request, answer) => void fake.serve(request, answer));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  fake.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  t.teardown(() => {
    fake.close();
    server.closeAllConnections();
    server.close();
  });
  return fake;
}

class Fake implements FakeDestination {
  url = '';
  capabilities: Capabilities = { protocol: PEER_PROTOCOL, userfaultfd: { ok: true } };
  copied: FakeDestination['copied'] = (round, told) => fetched(round, told, 125_000);
  onLoad: FakeDestination['onLoad'] = () => undefined;
  readonly asked: string[] = [];
  prepared: PrepareRequest | undefined;
  manifest: Manifest | undefined;
  #stream: Socket | undefined;
  #refused = false;
  /** Frames told between two ends of the manifest, in order; the last is still growing. */
  #told = [0];
  #hasState = false;
  #waiting: (() => void)[] = [];

  async serve(request: IncomingMessage, answer: ServerResponse): Promise<void> {
    let body = '';
    for await (const piece of request) body += String(piece);
    try {
      const json = await this.#answer(request, body === '' ? {} : (JSON.parse(body) as Record<string, unknown>));
      answer.setHeader('content-type', 'application/json').end(JSON.stringify(json));
    } catch (error) {
      const { code, message, hint } = error as PagetideError;
      answer.writeHead(500).end(JSON.stringify({ code, message: `the fake destination: ${message}`, hint }));
    }
  }

  async #answer({ url = '' }: IncomingMessage, body: Record<string, unknown>): Promise<unknown> {
    const verb = url.split('/').at(-1)!;
    if (url === '/v1/capabilities') return this.capabilities;
    if (url === '/v1/incoming') return this.#prepare(body as unknown as PrepareRequest);
    if (verb === 'copy') {
      const round = body['round'] as number;
      this.asked.push(`copy ${round}`);
      await this.#until(() => this.#told.length > round || this.#refused);
      if (this.#refused) return this.#status('refused');
      const copied = await this.copied(round, this.#told[round - 1]!);
      return { ...this.#status('prepared'), ...(copied === undefined ? {} : { copied }) };
    }
    if (verb === 'load') {
      this.asked.push(`load ${String(body['rest'])}`);
      await this.#until(() => this.#hasState);
      this.onLoad(body['rest'] as Rest, this.manifest!, this.prepared!.source.token);
      this.#refused = true;
      const error = new PagetideError('PT_VMM_REFUSED_STATE', 'this destination takes no guest').toJSON();
      return { ...this.#status('refused'), error };
    }
    if (verb === 'abort') {
      this.asked.push('abort');
      this.#refused = true;
      this.#wake();
      return this.#status('refused');
    }
    return this.#status(this.#refused ? 'refused' : 'unknown');
  }

  async #prepare(request: PrepareRequest): Promise<IncomingStatus> {
    this.asked.push('prepare');
    if (this.prepared === undefined) {
      this.prepared = request;
      this.manifest = new Manifest(request.manifest.frames);
      this.#stream = await this.#connect(request, this.manifest);
    }
    return { ...this.#status('prepared'), wants: [0, this.manifest!.chunks] };
  }

  #status(state: IncomingStatus['state']): IncomingStatus {
    return { migration: this.prepared!.migration, epoch: this.prepared!.epoch, state };
  }

  /** Takes the state stream in, and checks the digest at each end of the manifest. */
  async #connect({ source, migration }: PrepareRequest, manifest: Manifest): Promise<Socket> {
    const upgrade = httpRequest(`${source.url}/v1/pages/${migration}?channel=state`, {
      headers: {
        connection: 'Upgrade',
        upgrade: 'pagetide',
        'pagetide-protocol': String(PAGE_PROTOCOL),
        authorization: `Bearer ${source.token}`,
      },
    });
    upgrade.end();
    const [, socket, head] = (await once(upgrade, 'upgrade')) as [IncomingMessage, Socket, Buffer];
    const decoder = new FrameDecoder(
      'client-state',
      TAG_PAGE,
      (type, _flags, _stream, argument, buffer, at, length) => {
        const payload = buffer.subarray(at, at + length);
        if (type === FrameType.Tags) {
          decodeTags(payload, argument, manifest);
          this.#told[this.#told.length - 1]! += payload.readUInt32LE(0);
        } else if (type === FrameType.ManifestEnd) {
          checkManifestEnd(payload, argument, manifest);
          this.#told.push(0);
        } else if (type === FrameType.StateEnd) {
          this.#hasState = true;
        }
        this.#wake();
      },
    );
    const feed = (chunk: Buffer): void => {
      try {
        decoder.feed(chunk, chunk.length);
      } catch (error) {
        // the rounds that wait for it end with the test's own limit, and say why
        socket.destroy(error as Error);
      }
    };
    socket.on('data', feed).on('error', (error) => this.asked.push(`stream: ${error.message}`));
    if (head.length > 0) feed(head);
    return socket;
  }

  async #until(holds: () => boolean): Promise<void> {
    while (!holds()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  close(): void {
    this.#stream?.destroy();
    this.#refused = this.#hasState = true;
    this.#wake();
  }
}
