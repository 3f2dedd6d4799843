/** A migration's course, or an evacuation's, as NDJSON: one object a line, until it ends or somebody hangs up. */
import { Readable } from 'node:stream';
import type { FastifyReply } from 'fastify';
import type { z } from 'zod';

/** Event streams that are open; ended when the API closes, or that would wait for them. */
export class EventStreams {
  readonly #open = new Set<AbortController>();

  /** How many are open. */
  get size(): number {
    return this.#open.size;
  }

  /** Ends all of them; their clients see a connection that broke and come back. */
  abort(): void {
    for (const controller of this.#open) controller.abort();
  }

  /**
   * Answers with `watch`'s items, each checked by `schema`. Its signal is aborted when the client hangs up, when the API closes, and when the
   * stream has ended. An iterator that throws breaks the connection: an end without error means that it ended.
   */
  send<T>(reply: FastifyReply, schema: z.ZodType<T>, watch: (signal: AbortSignal) => AsyncIterable<T>): void {
    const controller = new AbortController();
    const { signal } = controller;
    this.#open.add(controller);
    const stream = Readable.from(lines(watch(signal), schema, signal), { objectMode: false });
    // the reply's close comes for both a full answer and a lost client
    reply.raw.once('close', () => {
      controller.abort();
      stream.destroy();
      this.#open.delete(controller);
    });
    signal.addEventListener('abort', () => stream.destroy(new Error('the event stream was ended')), { once: true });
    stream.on('error', (error) => {
      if (!signal.aborted) reply.log.error({ err: error }, 'event stream failed');
    });
    reply.type('application/x-ndjson; charset=utf-8').header('cache-control', 'no-store').send(stream);
  }
}

async function* lines<T>(items: AsyncIterable<T>, schema: z.ZodType<T>, signal: AbortSignal): AsyncGenerator<string> {
  for await (const item of items) {
    if (signal.aborted) return;
    // parsed by hand, as fastify doesn't check streams
    yield `${JSON.stringify(schema.parse(item))}\n`;
  }
}
