/** Long-running commands: run until a signal, then close in order. */
/** How long after an orderly end something may still keep the process alive, milliseconds. */
const LINGER_MS = 2000;

export interface Running {
  close(): Promise<void>;
}

/**
 * Starts something and keeps it until SIGTERM or SIGINT, then closes it. A signal that comes while it still starts is
 * kept until it can be closed; a second one ends the process at once. `ready` is called when it has started.
 */
export async function serve<T extends Running>(start: () => Promise<T>, ready: (running: T) => void): Promise<void> {
  let asked = false;
  let ask = () => {
    asked = true;
  };
  const onSignal = () => {
    if (asked) process.exit(130);
    ask();
    asked = true;
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  try {
    const running = await start();
    const stopped = new Promise<void>((resolve) => {
      ask = resolve;
      if (asked) resolve();
    });
    ready(running);
    await stopped;
    await running.close();
  } finally {
    process.off('SIGTERM', onSignal);
    process.off('SIGINT', onSignal);
  }
  // everything is closed by now: what is left is a leak, and must not keep a service manager waiting
  setTimeout(() => {
    process.stderr.write('ended, although something was still open\n');
    process.exit(0);
  }, LINGER_MS).unref();
}
