/** The state channel at the source: sends the offer's log (manifest, device state) from its start. */
import type { Socket } from 'node:net';
import type { LiveOffer } from './live-offer.ts';
import { Counter } from './server-messages.ts';
import { ServerStream } from './server-stream.ts';
import { FrameType, HEADER_SIZE, protocolError } from './wire.ts';

/** Bytes that may wait in the socket. Above Node's own mark, so that 'drain' comes. */
const UNSENT_LIMIT = 256 << 10;

function counterOf(type: number): number {
  return type === FrameType.Tags || type === FrameType.ManifestEnd ? Counter.manifestBytes : Counter.stateBytes;
}

export class StateStream extends ServerStream<LiveOffer> {
  #next = 0;

  constructor(offer: LiveOffer, socket: Socket, livenessMs: number) {
    super(offer, 'state', socket, livenessMs);
    this.#pump();
  }

  override logGrew(): void {
    this.#pump();
  }

  protected override drained(): void {
    this.#pump();
  }

  protected override take(): void {
    throw protocolError('nothing is asked for on the state channel');
  }

  #pump(): void {
    const { log } = this.owner;
    // What was written at the switch is many small frames: they leave together.
    this.socket.cork();
    while (this.#next < log.length && this.socket.writableLength < UNSENT_LIMIT && !this.closing) {
      const frame = log[this.#next++]!;
      this.owner.count(counterOf(frame[4]!), frame.length - HEADER_SIZE);
      this.send(frame);
    }
    this.socket.uncork();
  }
}
