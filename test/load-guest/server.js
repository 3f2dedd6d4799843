// The service of the node load: texts and counters, in the heap, over HTTP.
const { createServer } = require('node:http');

const texts = new Map();
const counts = new Map();

function answer(method, path, body) {
  const [, kind, name] = path.split('/');
  if (kind === 'texts' && method === 'PUT') {
    texts.set(name, body);
    return [204, ''];
  }
  if (kind === 'texts' && method === 'GET') return texts.has(name) ? [200, texts.get(name)] : [404, ''];
  if (kind === 'counts') {
    if (method === 'POST') counts.set(name, (counts.get(name) ?? 0) + 1);
    return [200, String(counts.get(name) ?? 0)];
  }
  return [400, ''];
}

const server = createServer((request, response) => {
  let body = '';
  request.setEncoding('utf8');
  request.on('data', (text) => (body += text));
  request.on('end', () => {
    const [status, text] = answer(request.method, request.url, body);
    response.writeHead(status, { 'content-length': Buffer.byteLength(text) });
    response.end(text);
  });
});
// A guest may stand still for any time: no client is to be hung up on for that.
server.keepAliveTimeout = 0;
server.headersTimeout = 0;
server.requestTimeout = 0;
server.listen(8080, '127.0.0.1');
