/** A worker's end of the port to the main thread. */
import type { MessagePort } from 'node:worker_threads';
import type { FromWorker, ToWorker } from './worker-messages.ts';

export class ServicePort {
  /** Resolves to true when told to start, to false when told to stop before. */
  readonly started: Promise<boolean>;
  onStop: (() => void) | undefined;
  private readonly port: MessagePort;
  private stopped = false;
  private readonly toldToStop: Promise<false>;

  constructor(port: MessagePort) {
    this.port = port;
    let stop: (stopped: false) => void;
    this.toldToStop = new Promise((resolve) => (stop = resolve));
    this.started = new Promise((resolve) => {
      port.on('message', (message: ToWorker) => {
        if (message.do === 'start') {
          resolve(true);
          return;
        }
        this.stopped = true;
        stop(false);
        resolve(false);
        this.onStop?.();
      });
    });
  }

  /** Waits for `ready`: true once it resolves, false when told to stop before. A source may never answer. */
  unlessStopped(ready: Promise<void>): Promise<boolean> {
    return Promise.race([ready.then(() => true), this.toldToStop]);
  }

  get isStopped(): boolean {
    return this.stopped;
  }

  tell(message: FromWorker): void {
    this.port.postMessage(message);
  }

  close(): void {
    this.port.close();
  }
}
