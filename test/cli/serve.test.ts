/** Long-running commands end in order at a signal, also at one that comes while they still start. */
import t from 'tap';
import { serve } from '../../src/cli/serve.ts';

void t.test('closes once at SIGTERM, after it was ready', async (t) => {
  const steps: string[] = [];
  const before = process.listenerCount('SIGTERM');
  await serve(
    () => Promise.resolve({ close: () => Promise.resolve(void steps.push('close')) }),
    () => {
      steps.push('ready');
      process.emit('SIGTERM');
    },
  );
  t.same(steps, ['ready', 'close']);
  t.equal(process.listenerCount('SIGTERM'), before, 'no handler is left');
});

void t.test('a signal during the start is kept until there is something to close', async (t) => {
  const steps: string[] = [];
  await serve(
    () => {
      process.emit('SIGINT');
      steps.push('started');
      return Promise.resolve({ close: () => Promise.resolve(void steps.push('close')) });
    },
    () => void steps.push('ready'),
  );
  t.same(steps, ['started', 'ready', 'close']);
});

void t.test('a start that fails leaves no handlers', async (t) => {
  const before = process.listenerCount('SIGTERM');
  await t.rejects(
    serve(
      () => Promise.reject(new Error('no')),
      () => t.fail('not ready'),
    ),
    { message: 'no' },
  );
  t.equal(process.listenerCount('SIGTERM'), before);
});
