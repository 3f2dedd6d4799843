/** A cluster for a bench: it leaves no agent and no guest behind, however the bench ends. */
import { cluster as makeCluster, type Cluster } from '../../test/support/cluster.ts';

/** Ends the cluster with the work, however that ends, and on Ctrl-C and SIGTERM, when `signal` is aborted. */
export async function withCluster(work: (cluster: Cluster, signal: AbortSignal) => Promise<void>): Promise<void> {
  const teardowns: (() => Promise<void>)[] = [];
  const cluster = makeCluster({ teardown: (fn) => teardowns.push(fn) });
  const abort = new AbortController();
  let ending: Promise<unknown> | undefined;
  const end = (): Promise<unknown> => (ending ??= Promise.all(teardowns.map((teardown) => teardown())));
  const interrupted = (signal: NodeJS.Signals): void => {
    abort.abort();
    // before the work, which fails now, can say so
    void end().finally(() => process.exit(signal === 'SIGINT' ? 130 : 143));
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    await work(cluster, abort.signal);
  } finally {
    await end();
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
}
