/**
 * The source of a migration in the test's own process: a real embedded guest, a real page server, and nothing of the source's machine.
 * The test says when the manifest is told, a round is asked for, the guest is stopped.
 */
import { randomBytes } from 'node:crypto';
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import type { Test } from 'tap';
import { embeddedDriver } from '../../src/guests/embedded/driver.ts';
import type { EmbeddedVmm } from '../../src/guests/embedded/vmm.ts';
import { native } from '../../src/memory/native.ts';
import { migrationKey } from '../../src/migration/arriving-names.ts';
import {
  PEER_PROTOCOL,
  type CompletionFigures,
  type CopiedRound,
  type IncomingStatus,
  type PrepareRequest,
} from '../../src/migration/types.ts';
import { CHUNK_FRAMES, Manifest } from '../../src/pages/manifest.ts';
import { encodeTagRuns } from '../../src/pages/tag-runs.ts';
import { TAG_BYTES, TAG_VERSION, type DomainKey } from '../../src/pages/tags.ts';
import { PageServer } from '../../src/transport/page-server.ts';
import { PeerClient } from '../../src/transport/peer.ts';
import { encodeChunks, encodeManifestEnd, encodeTags } from '../../src/transport/wire-tags.ts';
import { TcpProxy } from './tcp-proxy.ts';

const PAGE = 4096;

/** What a test decides of the migration. */
export type Way = Pick<PrepareRequest, 'mode' | 'copies' | 'serves'> & { bandwidth?: number };

export class FakeSource {
  readonly guest = 'g1';
  readonly migration = randomBytes(8).toString('hex');
  readonly epoch = Date.now();
  readonly vmm: EmbeddedVmm;
  readonly manifest: Manifest;
  readonly client: PeerClient;
  /** Between the destination and the page server. */
  readonly proxy: TcpProxy;
  /** What the destination said at its end. */
  readonly completed: Promise<CompletionFigures>;
  readonly #token = randomBytes(24).toString('base64url');
  readonly #key: DomainKey;
  readonly #server: PageServer;
  readonly #file: string;
  #round = 0;

  private constructor(
    vmm: EmbeddedVmm,
    server: PageServer,
    proxy: TcpProxy,
    to: string,
    done: Promise<CompletionFigures>,
  ) {
    this.vmm = vmm;
    this.#server = server;
    this.proxy = proxy;
    this.completed = done;
    this.client = new PeerClient(to);
    this.#key = migrationKey(this.#token);
    this.#file = vmm.record.files[0]!.path;
    this.manifest = new Manifest(vmm.record.description.memory.size / PAGE);
  }

  /** A guest of these options (the driver's), and what may move it to the agent at `to`. All of it ends with the test. */
  static async start(t: Test, folder: string, to: string, options: Record<string, unknown>): Promise<FakeSource> {
    const place = { name: 'g1', folder: join(folder, 'guest'), memoryFolder: join(folder, 'memory') };
    for (const path of [place.folder, place.memoryFolder]) mkdirSync(path, { recursive: true });
    const vmm = await embeddedDriver.run(place, options);
    t.teardown(() => vmm.destroy({ force: true }));
    const controlSocket = join(folder, 'api');
    let complete!: (figures: CompletionFigures) => void;
    const completed = new Promise<CompletionFigures>((resolve) => (complete = resolve));
    const api = createServer((request, response) => {
      let text = '';
      request.setEncoding('utf8').on('data', (piece: string) => (text += piece));
      request.on('end', () => {
        if (request.url?.endsWith('/complete') === true)
          complete((JSON.parse(text) as { figures: CompletionFigures }).figures);
        response.writeHead(200, { 'content-type': 'application/json' }).end('{}');
      });
    });
    await new Promise<void>((resolve) => api.listen(controlSocket, resolve));
    t.teardown(() => {
      api.closeAllConnections();
      api.close();
    });
    const server = await PageServer.start({ host: '127.0.0.1', port: 0, controlSocket });
    t.teardown(() => server.close());
    const proxy = await TcpProxy.start(t);
    proxy.target = server.address().url;
    const made = new FakeSource(vmm, server, proxy, to, completed);
    t.teardown(async () => {
      await made.client.close();
      made.#key.close();
    });
    await server.offer({
      migration: made.migration,
      token: made.#token,
      pageSize: PAGE,
      frames: made.manifest.frames,
      files: vmm.record.files,
    });
    return made;
  }

  /** Makes the manifest and asks the destination to get ready; tells what it wants, as round 1. */
  async prepare(way: Way, more: Partial<PrepareRequest> = {}): Promise<IncomingStatus> {
    this.scan();
    const { chunks, frames } = this.manifest;
    const status = await this.client.prepare({
      protocol: PEER_PROTOCOL,
      migration: this.migration,
      epoch: this.epoch,
      guest: this.guest,
      description: this.vmm.record.description,
      manifest: {
        version: TAG_VERSION,
        frames,
        chunks: encodeTagRuns(this.manifest.chunkTags(), 0, chunks).toString('base64'),
      },
      source: { url: this.proxy.url, token: this.#token },
      verify: true,
      bandwidth: 0,
      ...way,
      ...more,
    });
    if (status.state === 'prepared') await this.#push(encodeChunks(this.manifest, status.wants ?? []));
    return status;
  }

  /** Tags the guest's memory anew; returns the frames whose tag has changed. */
  scan(): number[] {
    const { frames, tags } = this.manifest;
    const before = Uint8Array.from(tags);
    const scratch = new Uint8Array(CHUNK_FRAMES * PAGE);
    const fd = openSync(this.#file, 'r');
    try {
      for (let first = 0; first < frames; first += CHUNK_FRAMES) {
        const count = Math.min(CHUNK_FRAMES, frames - first);
        native().tagFile(this.#key.id, fd, first * PAGE, count, tags, first, scratch);
      }
    } finally {
      closeSync(fd);
    }
    this.manifest.touch(0, frames);
    const at = (frame: number): [number, number] => [frame * TAG_BYTES, (frame + 1) * TAG_BYTES];
    return Array.from({ length: frames }, (_, frame) => frame).filter(
      (frame) => Buffer.compare(tags.subarray(...at(frame)), before.subarray(...at(frame))) !== 0,
    );
  }

  /** Tells what has changed since, and the end of the round; the first was told by {@link prepare}. Returns its number. */
  async tell(): Promise<number> {
    if (this.#round > 0) await this.#push(this.scan().flatMap((frame) => encodeTags(this.manifest, frame, 1)));
    await this.#push([encodeManifestEnd(this.manifest)]);
    return ++this.#round;
  }

  /** Asks until the round is copied. */
  async copy(round: number): Promise<CopiedRound> {
    for (;;) {
      const { copied } = await this.client.copy(this.migration, this.epoch, round);
      if (copied !== undefined) return copied;
    }
  }

  /** Stops the guest and tells all that is left; resolves when the destination has loaded it. */
  async load(rest: 'copy' | 'serve'): Promise<IncomingStatus> {
    const departure = this.vmm.depart(this.#server.pushState(this.migration));
    await departure.stopped;
    this.#round = Math.max(1, this.#round); // prepare has told the first tags
    await this.tell();
    await this.#server.settle(this.migration);
    const status = await this.client.load(this.migration, this.epoch, rest);
    await departure.saved;
    return status;
  }

  takeOver(): Promise<IncomingStatus> {
    return this.client.takeOver(this.migration, this.epoch);
  }

  abort(): Promise<IncomingStatus> {
    return this.client.abort(this.migration, this.epoch);
  }

  async #push(frames: Buffer[]): Promise<void> {
    if (frames.length > 0) await this.#server.pushManifest(this.migration, frames);
  }
}
