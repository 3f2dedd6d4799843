/** The device state's frames, and error frames. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { PagetideError, errorFromJson, type ErrorJson } from '../errors.ts';
import { FrameType, WireLimit, encodeFrame, protocolError } from './wire.ts';

/** Makes the frames of a device state that comes in pieces of any size. */
export class StateEncoder {
  readonly #hash = createHash('sha256');
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** @throws PagetideError `PT_NO_SPACE` above {@link WireLimit.stateBytes}. */
  encode(chunk: Uint8Array): Buffer[] {
    if (this.#length + chunk.length > WireLimit.stateBytes) {
      throw new PagetideError('PT_NO_SPACE', `the device state is larger than ${WireLimit.stateBytes} bytes`, {
        hint: 'The state holds devices, never RAM: check that the guest’s memory is a shared file.',
      });
    }
    this.#hash.update(chunk);
    const frames: Buffer[] = [];
    for (let at = 0; at < chunk.length; at += WireLimit.stateChunk) {
      const part = chunk.subarray(at, at + WireLimit.stateChunk);
      frames.push(encodeFrame(FrameType.State, 0, 0, this.#length, part));
      this.#length += part.length;
    }
    return frames;
  }

  end(): Buffer {
    const payload = Buffer.alloc(40);
    payload.writeBigUInt64LE(BigInt(this.#length), 0);
    this.#hash.digest().copy(payload, 8);
    return encodeFrame(FrameType.StateEnd, 0, 0, 0, payload);
  }
}

/** Checks a device state as it comes; a new one for each connection, as each begins from the start. */
export class StateReader {
  readonly #hash = createHash('sha256');
  #length = 0;
  #ended = false;

  get length(): number {
    return this.#length;
  }

  /** @throws PagetideError `PT_PROTOCOL` */
  chunk(payload: Uint8Array, offset: number): void {
    if (this.#ended) throw protocolError('the device state goes on after its end');
    if (offset !== this.#length) throw protocolError(`device state at ${offset} instead of ${this.#length}`);
    if (offset + payload.length > WireLimit.stateBytes) throw protocolError('the device state is too large');
    this.#length += payload.length;
    this.#hash.update(payload);
  }

  /** @throws PagetideError `PT_PROTOCOL` when the state isn't whole. */
  end(payload: Buffer): void {
    if (this.#ended) throw protocolError('the device state ends twice');
    this.#ended = true;
    const whole = payload.readBigUInt64LE(0) === BigInt(this.#length);
    if (!whole || !timingSafeEqual(this.#hash.digest(), payload.subarray(8, 40))) {
      throw protocolError('the device state does not match its own digest');
    }
  }
}

/** An Error frame; the message is cut where it would be too long. */
export function encodeError(error: PagetideError, stream: number, argument: number): Buffer {
  const { code, hint } = error.toJSON();
  const body: ErrorJson = { code, message: error.message.slice(0, 400), hint: hint.slice(0, 200) };
  return encodeFrame(FrameType.Error, 0, stream, argument, Buffer.from(JSON.stringify(body)));
}

/** @throws PagetideError `PT_PROTOCOL` when it isn't JSON. */
export function decodeError(payload: Buffer): PagetideError {
  let json: unknown;
  try {
    json = JSON.parse(payload.toString('utf8'));
  } catch {
    throw protocolError('an error frame is not JSON');
  }
  return errorFromJson(json);
}
