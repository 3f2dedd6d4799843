/** A worker's end of the port to the main thread. */
import type { MessagePort } from 'node:worker_threads';
import type { FromWorker, ToWorker } from './worker-messages.ts';

/** What a worker is told to do next; `stop` from then on. */
export type Command = Exclude<ToWorker, { do: 'halt' | 'limit' }>;

export class ServicePort {
  onStop: (() => void) | undefined;
  /** A round is to end. */
  onHalt: (() => void) | undefined;
  /** Bytes of pages a second, at most, from now on. */
  onLimit: ((bandwidth: number) => void) | undefined;
  private readonly port: MessagePort;
  private stopped = false;
  private readonly toldToStop: Promise<false>;
  private readonly commands: Command[] = [];
  private waiting: ((command: Command) => void) | undefined;

  constructor(port: MessagePort) {
    this.port = port;
    let stop: (stopped: false) => void;
    this.toldToStop = new Promise((resolve) => (stop = resolve));
    port.on('message', (message: ToWorker) => {
      if (message.do === 'limit') {
        // whatever it does just now
        this.onLimit?.(message.bandwidth);
        return;
      }
      if (message.do === 'halt') {
        // a round that waits for its turn must not begin any more
        const waits = this.commands.findIndex((command) => command.do === 'round');
        if (waits < 0) this.onHalt?.();
        else {
          this.commands.splice(waits, 1);
          this.tell({ event: 'round', copied: false });
        }
        return;
      }
      if (message.do === 'stop') {
        this.stopped = true;
        stop(false);
      }
      this.commands.push(message);
      this.hand();
      if (message.do === 'stop') this.onStop?.();
    });
  }

  /** The next that it is told, in order; one caller at a time. */
  next(): Promise<Command> {
    return new Promise((resolve) => {
      this.waiting = resolve;
      this.hand();
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

  private hand(): void {
    const { waiting } = this;
    if (waiting === undefined) return;
    const command: Command | undefined = this.stopped ? { do: 'stop' } : this.commands.shift();
    if (command === undefined) return;
    this.waiting = undefined;
    waiting(command);
  }
}
