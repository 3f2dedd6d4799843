/**
 * The control API: a thin skin over {@link AgentService}. It listens on the agent's Unix socket; the thread that owns
 * the port passes requests on to it, marked with the header `x-pagetide-via: port`.
 */
import swagger from '@fastify/swagger';
import { fastify, LogController, type FastifyBaseLogger, type FastifyInstance, type FastifyRequest } from 'fastify';
import {
  jsonSchemaTransform,
  jsonSchemaTransformObject,
  serializerCompiler,
  validatorCompiler,
} from 'fastify-type-provider-zod';
import { PagetideError } from '../../errors.ts';
import type { AgentService } from '../service.ts';
import { EventStreams } from './events.ts';
import { handleErrors, refuse } from './errors.ts';
import { addRoutes } from './routes.ts';

/** Bytes of a request's body: guest descriptions are the largest, with a VMM's whole command line. */
export const BODY_LIMIT = 1024 * 1024;
/** Of the API, as in its paths; grows when a client of the old one would fail. */
const API_VERSION = '1';
/** Set by the port's thread, to any value, on requests that came over TCP. */
export const VIA_HEADER = 'x-pagetide-via';
/** Beside it: the name in the sender's certificate; absent where the port speaks plain HTTP. Only the port's thread can set it. */
export const PEER_HEADER = 'x-pagetide-peer';
/** The part of the API that other hosts may use. */
export const BETWEEN_AGENTS = 'between agents';

export interface ApiOptions {
  /** Gets failures and, at level `debug`, every request. Nothing is logged without. */
  logger?: FastifyBaseLogger;
  /** How long `close` waits for answers under way before it breaks their connections, milliseconds; 2,000 by default. */
  closeGraceMs?: number;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** It came over the port rather than the control socket. */
    viaPort: boolean;
    /** The sender's name, from its certificate; undefined on the control socket and over plain HTTP. */
    peer: string | undefined;
  }
}

/**
 * Builds the API; listens nowhere yet (see `listenControl`). `close()` ends event streams at once, lets other answers
 * finish for a moment, then breaks their connections: every call between agents may be repeated.
 */
export function buildApi(service: AgentService, options: ApiOptions = {}): FastifyInstance {
  const app = fastify({
    ...(options.logger === undefined ? { logger: false } : { loggerInstance: options.logger }),
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: BODY_LIMIT,
    exposeHeadRoutes: false,
    // load, verify and run answer when their work is done
    requestTimeout: 0,
    connectionTimeout: 0,
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    frameworkErrors: refuse,
    routerOptions: { maxParamLength: 100 },
  });
  app.setValidatorCompiler(validatorCompiler);
  app.setSerializerCompiler(serializerCompiler);
  handleErrors(app);

  app.decorateRequest('viaPort', false);
  app.decorateRequest('peer', undefined);
  app.addHook('onRequest', (request, _reply, done) => {
    request.viaPort = request.headers[VIA_HEADER] !== undefined;
    const peer = request.headers[PEER_HEADER];
    request.peer = request.viaPort && typeof peer === 'string' ? peer : undefined;
    done(refuseBrowsers(request.headers) ?? refuseOperators(request));
  });
  app.addHook('onResponse', (request, reply, done) => {
    const { method, url, viaPort } = request;
    request.log.debug({ method, url, viaPort, status: reply.statusCode, ms: Math.round(reply.elapsedTime) }, 'request');
    done();
  });

  const events = new EventStreams();
  app.addHook('preClose', (done) => {
    events.abort();
    const grace = setTimeout(() => app.server.closeAllConnections(), options.closeGraceMs ?? 2000);
    app.server.once('close', () => clearTimeout(grace));
    // a server that never listened has nothing to close, and says so by no event
    if (!app.server.listening) clearTimeout(grace);
    done();
  });

  app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'Pagetide control API',
        version: API_VERSION,
        description: 'What an agent can be asked to do, by operators and by other agents.',
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      },
      tags: [
        { name: 'host', description: 'The agent and its host' },
        { name: 'guests', description: 'Guests on this host' },
        { name: 'domains', description: 'Sets of guests that may share pages' },
        { name: 'cache', description: 'The shared-page cache' },
        { name: 'migrations', description: 'Migrations, as an operator sees them' },
        { name: 'distribution', description: 'Pages that are brought before guests come' },
        { name: 'plans', description: 'What operators say about where guests will go' },
        { name: 'evacuation', description: 'All guests of this host, moved to others' },
        { name: BETWEEN_AGENTS, description: 'What agents tell each other' },
      ],
    },
    transform: jsonSchemaTransform,
    transformObject: jsonSchemaTransformObject,
  });
  // below swagger, which has to see each route being added
  app.register((scope, _options, done) => {
    addRoutes(scope, service, events);
    done();
  });
  return app;
}

/**
 * Another host of the cluster is not an operator: a certificate lets it take part in migrations, not end this host's
 * guests. Where the port speaks plain HTTP there is no telling who asks, and all are users of this host.
 */
function refuseOperators({ peer, routeOptions }: FastifyRequest): PagetideError | undefined {
  const tags = (routeOptions.schema as { tags?: readonly string[] } | undefined)?.tags;
  if (peer === undefined || tags?.includes(BETWEEN_AGENTS) === true) return undefined;
  return new PagetideError('PT_NO_PERMISSION', `${peer} is a host, and this is for operators`, {
    hint: 'Use the control socket on this host.',
  });
}

/**
 * The port has no authentication while it is bound to loopback, but every web page that a local user opens can reach
 * loopback too. Browsers mark what pages send; no other client does.
 */
function refuseBrowsers(headers: Record<string, string | string[] | undefined>): PagetideError | undefined {
  const site = headers['sec-fetch-site'];
  if (headers['origin'] === undefined && (site === undefined || site === 'none')) return undefined;
  return new PagetideError('PT_NO_PERMISSION', 'requests from web pages are refused', {
    hint: 'Use the CLI, or a client that sends no Origin header.',
  });
}
