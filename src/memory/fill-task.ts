/** A guest's task in the fill pool: opens the session and the page source in this thread, and runs the fill. */
import { FillService } from './fill-service.ts';
import { openLocalPages, type LocalPages } from './local-pages.ts';
import { native } from './native.ts';
import { openNamedPages } from './named-pages.ts';
import { PeerFill, type FillSide } from './peer-fill.ts';
import { PeerPages } from './peer-pages.ts';
import { openPeers, type Peers } from './peers.ts';
import { ServicePort } from './service-port.ts';
import { Serving } from './serving.ts';
import type { ServiceEnd, ServiceTask } from './worker-messages.ts';

/** Ends when nothing is outstanding, when told to stop, or when the guest is gone. */
export async function runFillTask(task: ServiceTask): Promise<ServiceEnd> {
  const session = native().openSession(task.session);
  const serving = new Serving(task.serving);
  const port = new ServicePort(task.port);
  let local: LocalPages | undefined;
  let peer: PeerPages | undefined;
  let fill: FillService | undefined;
  let peers: Peers | undefined;
  try {
    const asked = new Map<number, Uint32Array>();
    if (task.pages.kind === 'peer') {
      peer = new PeerPages(task.pages, 'fill', serving, port, {
        onBatch: (batch, stream) => {
          const runs = asked.get(stream);
          asked.delete(stream);
          if (runs === undefined) return;
          fill?.answer(runs, {
            runs,
            zero: batch.zero,
            pages: batch.pages,
            wireBytes: batch.bodyBytes,
            from: 'source',
          });
        },
        onBatchError: (stream, runs, error) => {
          asked.delete(stream);
          fill?.refused(runs);
          port.tell({ event: 'trouble', frame: runs[0] ?? 0, error: error.toJSON() });
        },
        onConnected: () => fill?.connected(),
        onDisconnected: () => {
          asked.clear();
          fill?.disconnected();
        },
      });
      if (!(await port.unlessStopped(peer.connected))) return { end: 'stopped' };
    } else {
      local = openLocalPages(task.pages, session.pageSize, serving, 'fill');
    }
    const pages = peer;
    const names = task.pages.kind === 'peer' ? task.pages.named : undefined;
    const named = names && openNamedPages(names, session.pageSize, serving, 'fill');
    let peerFill: PeerFill | undefined;
    const others = openPeers(task.pages, session.pageSize, {
      sourceMs: () => pages?.roundTripMs,
      onLeftOut: (url, error) => port.tell({ event: 'left-out', url, error: error.toJSON() }),
      onChange: () => peerFill?.changed(),
    });
    peers = others;
    if (others !== undefined) peer?.alsoCount(() => others.bytes);
    const makePeerFill = (side: FillSide): PeerFill => {
      peerFill = new PeerFill({
        peers: others!,
        named: named!,
        tags: native().arenaView(names!.tags),
        frames: session.frames,
        pageSize: session.pageSize,
        serving,
        side,
        isSourceUp: () => pages?.roundTripMs !== undefined,
      });
      return peerFill;
    };
    fill = new FillService({
      session,
      serving,
      local,
      named,
      peers: others && makePeerFill,
      remote: pages && {
        request: (runs) => {
          const stream = pages.requestBatch(runs);
          if (stream === 0) return false;
          asked.set(stream, runs);
          return true;
        },
      },
      batchFrames: task.batchFrames,
      window: task.window,
      bandwidth: task.bandwidth,
      onTrouble: (frame, error) => port.tell({ event: 'trouble', frame, error: error.toJSON() }),
    });
    const service = fill;
    port.onStop = () => service.stop();
    port.tell({ event: 'ready' });
    if (!(await port.started)) return { end: 'stopped' };
    return { end: await service.run() };
  } finally {
    // first, so that its bytes are counted with the others'
    peers?.close();
    peer?.close();
    local?.close();
    session.close();
    port.close();
  }
}
