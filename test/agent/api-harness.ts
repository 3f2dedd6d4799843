/** The control API of a fake service on a Unix socket, and a bare HTTP client for it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { request, type IncomingHttpHeaders } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { buildApi, type ApiOptions } from '../../src/agent/api/app.ts';
import { listenControl } from '../../src/agent/api/listen.ts';
import { FakeService } from './fake-service.ts';

/** A folder of its own with a short path (sockets), removed with the test. */
export function shortFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'pt-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  json: unknown;
}

export interface Sending {
  method?: string;
  body?: unknown;
  /** Sent as it is, instead of `body`. */
  raw?: string;
  headers?: Record<string, string>;
}

/** One request. `json` is undefined where the answer is none. */
export function send(socketPath: string, path: string, sending: Sending = {}): Promise<Answer> {
  const payload = sending.raw ?? (sending.body === undefined ? undefined : JSON.stringify(sending.body));
  return new Promise((resolve, reject) => {
    const sent = request({
      socketPath,
      path,
      agent: false,
      method: sending.method ?? (payload === undefined ? 'GET' : 'POST'),
      headers: { ...(payload === undefined ? {} : { 'content-type': 'application/json' }), ...sending.headers },
    });
    sent.on('error', reject);
    sent.on('response', (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => (text += chunk));
      response.on('error', reject);
      response.on('end', () => {
        let json: unknown;
        try {
          json = JSON.parse(text);
        } catch {
          json = undefined;
        }
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text, json });
      });
    });
    sent.end(payload);
  });
}

/** Starts the API; it ends with the test. */
export async function startApi(t: Test, options: ApiOptions = {}) {
  const service = new FakeService();
  const folder = shortFolder(t);
  const socket = join(folder, 'control.sock');
  const app = buildApi(service, options);
  t.teardown(() => app.close());
  await listenControl(app, socket);
  return { service, app, folder, socket, send: (path: string, sending?: Sending) => send(socket, path, sending) };
}
