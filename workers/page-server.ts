/** Entry point of the page server's thread: see src/transport/page-server-thread.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { PageServerThread } from '../src/transport/page-server-thread.ts';
import type { PageServerSettings, Request } from '../src/transport/server-messages.ts';

const port = parentPort;
if (port === null) throw new Error('this file is a worker: start it through PageServer');

const server = new PageServerThread(workerData as PageServerSettings, (message) => {
  port.postMessage(message);
  // nothing more will be asked for: with the port closed, the thread ends when its last handle does
  if (message.type === 'failed') port.close();
});
port.on('message', (request: Request) => {
  void server.handle(request).then(() => {
    if (request.type === 'close') port.close();
  });
});
server.listen();
