/**
 * Passes HTTP requests that came over the port on to the agent's control API, which listens on a Unix socket in another
 * thread: so that an agent has one port, and its page streams a thread of their own. Streams both ways.
 */
import { request as httpRequest, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http';
import { pipeline } from 'node:stream';
import { PagetideError } from '../errors.ts';
import { PEER_HEADER, VIA_HEADER } from './upgrade.ts';

/** Headers that belong to one connection (RFC 9110, 7.6.1), and those that a client must not forge. */
const OWN = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  VIA_HEADER,
  PEER_HEADER,
]);

function endToEnd(headers: IncomingHttpHeaders): Record<string, string | string[]> {
  const named = new Set((headers.connection ?? '').split(',').map((name) => name.trim().toLowerCase()));
  const kept: Record<string, string | string[]> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined && !OWN.has(name) && !named.has(name)) kept[name] = value;
  }
  return kept;
}

/** Answers with an error as JSON. */
export function answerError(response: ServerResponse, error: PagetideError, status: number = error.status): void {
  const body = JSON.stringify(error.toJSON());
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  response.end(body);
}

/**
 * Passes one request on, and its answer back. Either side's end ends the other's.
 * @param peer the name in the sender's certificate; undefined on a plain connection
 */
export function proxyRequest(
  request: IncomingMessage,
  response: ServerResponse,
  controlSocket: string,
  peer: string | undefined,
): void {
  const headers = {
    ...endToEnd(request.headers),
    [VIA_HEADER]: 'port',
    // The API must not close first: an answer that comes at once would meet the end of the request, an empty write, with
    // EPIPE, and be lost. Without an agent that keeps it, this end closes the connection when the answer is there.
    connection: 'keep-alive',
    ...(peer === undefined ? {} : { [PEER_HEADER]: peer }),
  };
  // A connection each: on a Unix socket it costs little, and one kept alive may be closed just as it is used again.
  const upstream = httpRequest({
    socketPath: controlSocket,
    method: request.method ?? 'GET',
    path: request.url ?? '/',
    headers,
    agent: false,
    setHost: false,
  });
  const fail = (cause: unknown): void => {
    if (response.headersSent || response.destroyed) {
      response.destroy();
      return;
    }
    const error = new PagetideError('PT_PEER_UNREACHABLE', "the agent's control API does not answer", {
      cause,
      hint: 'The agent is starting or ending; try again.',
    });
    answerError(response, error, 503);
  };
  upstream.on('response', (answer) => {
    response.writeHead(answer.statusCode ?? 502, endToEnd(answer.headers));
    // without this an answer that streams slowly shows its head only with its first byte
    response.flushHeaders();
    pipeline(answer, response, () => {
      // whichever side broke off, pipeline has destroyed the other
    });
  });
  upstream.on('error', fail);
  // an API that asks for another protocol is not passed on
  upstream.on('upgrade', (_answer, socket) => {
    socket.destroy();
    fail(undefined);
  });
  response.on('close', () => {
    if (!response.writableFinished) upstream.destroy();
  });
  pipeline(request, upstream, () => {
    // an error shows at `upstream` or `response`
  });
}
