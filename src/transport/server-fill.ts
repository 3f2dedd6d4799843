/** The fill channel at the source: batches of the guest's frames, and deltas of them. */
import type { Socket } from 'node:net';
import type { LiveOffer } from './live-offer.ts';
import { Counter } from './server-messages.ts';
import { BulkStream, type BulkParts } from './server-bulk.ts';
import type { BatchResult } from './batch-task.ts';
import { decodeBatchRequest } from './wire-batch.ts';
import { decodeDeltaRequest } from './wire-deltas.ts';
import { FrameFlag, FrameType, WireLimit } from './wire.ts';

export class FillStream extends BulkStream<LiveOffer> {
  constructor(offer: LiveOffer, socket: Socket, parts: BulkParts) {
    super(offer, 'fill', socket, parts, WireLimit.batchRequests);
  }

  protected override take(
    type: FrameType,
    stream: number,
    total: number,
    buffer: Buffer,
    offset: number,
    length: number,
    flags: number,
  ): void {
    const { frames, pageSize, files } = this.owner;
    if (type === FrameType.DeltaRequest) {
      const request = decodeDeltaRequest(buffer.subarray(offset, offset + length), total, frames, pageSize);
      const measure = (flags & FrameFlag.Measure) !== 0;
      const task = { kind: 'deltas', segments: files.segments, stream, request, total, measure } as const;
      this.enqueue({ stream, argument: total, task });
      this.owner.count(Counter.batchRequests);
      return;
    }
    const runs = decodeBatchRequest(buffer, offset, length, total, frames, pageSize);
    this.enqueue({
      stream,
      argument: total,
      task: { kind: 'frames', segments: files.segments, pageSize, stream, runs, total },
    });
    this.owner.count(Counter.batchRequests);
  }

  protected override retainTask(): void {
    this.owner.files.retain();
  }

  protected override releaseTask(): void {
    this.owner.files.release();
  }

  protected override countResult(result: Exclude<BatchResult, { error: unknown }>): void {
    const { owner } = this;
    owner.count(Counter.fillPages, result.pages);
    owner.count(Counter.fillZero, result.absent);
    owner.count(Counter.rawBytes, result.rawBytes);
    owner.count(Counter.pageBytes, result.bodyBytes);
  }
}
