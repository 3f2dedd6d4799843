/** How a failure becomes an answer of the control API: `{code, message, hint, cause?}`, always. */
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { hasZodFastifySchemaValidationErrors, ResponseSerializationError } from 'fastify-type-provider-zod';
import { asPagetideError, PagetideError } from '../../errors.ts';

/** Longest list of complaints in one message. */
const COMPLAINTS = 5;

interface Refusal {
  status: number;
  error: PagetideError;
}

/** Turns anything that a route, a validator or fastify itself threw into an error of ours and an HTTP status. */
export function refusal(thrown: unknown): Refusal {
  if (thrown instanceof PagetideError) return { status: thrown.status, error: thrown };
  if (hasZodFastifySchemaValidationErrors(thrown)) {
    const where = (thrown as { validationContext?: string }).validationContext ?? 'request';
    const complaints = thrown.validation.slice(0, COMPLAINTS).map((issue) => {
      const path = issue.instancePath === '/' ? '' : issue.instancePath.slice(1).replaceAll('/', '.');
      return `${path === '' ? where : `${where}.${path}`}: ${issue.message ?? 'is not valid'}`;
    });
    const more = thrown.validation.length - complaints.length;
    if (more > 0) complaints.push(`and ${more} more`);
    return { status: 400, error: new PagetideError('PT_BAD_ARGUMENT', complaints.join('; ')) };
  }
  if (thrown instanceof ResponseSerializationError) {
    const issue = thrown.cause.issues[0];
    const found = issue === undefined ? '' : `: ${issue.path.join('.')}: ${issue.message}`;
    const message = `the answer to ${thrown.method} ${thrown.url} breaks its own description${found}`;
    return { status: 500, error: new PagetideError('PT_INTERNAL', message) };
  }
  // fastify's own refusals (no JSON, too large, unknown media type) keep HTTP's status, which proxies understand
  const status = (thrown as { statusCode?: unknown } | null)?.statusCode;
  if (typeof status === 'number' && status >= 400 && status < 500) {
    const message = thrown instanceof Error ? thrown.message : 'the request is malformed';
    return { status, error: new PagetideError('PT_BAD_ARGUMENT', message) };
  }
  const error = asPagetideError(thrown);
  return { status: error.status, error };
}

/** Answers with a failure. Also for what fastify refuses before any route is found, such as a malformed URL. */
export function refuse(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { status, error } = refusal(thrown);
  if (status >= 500) request.log.error({ err: error, code: error.code, url: request.url }, 'request failed');
  answer(reply, status, error);
}

/** Installs the error handler and the answer to unknown routes. */
export function handleErrors(app: FastifyInstance): void {
  app.setErrorHandler(refuse);
  app.setNotFoundHandler((request, reply) => {
    const error = new PagetideError('PT_BAD_ARGUMENT', `there is no ${request.method} ${request.url.slice(0, 200)}`, {
      hint: 'GET /v1/openapi.json lists the routes.',
    });
    answer(reply, 404, error);
  });
}

/** Stringified here: the routes' own schemas are for their successes. */
function answer(reply: FastifyReply, status: number, error: PagetideError): void {
  reply
    .code(status)
    .type('application/json; charset=utf-8')
    .serializer((body: unknown) => JSON.stringify(body))
    .send(error.toJSON());
}
