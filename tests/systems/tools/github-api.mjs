// Cuts GitHub's OpenAPI description (npm @octokit/openapi, 12 MB) down to what an App's tokens need, so that
// prism starts in seconds: node github-api.mjs DESCRIPTION OUT.json
import { readFileSync, writeFileSync } from 'node:fs';

const [source, target] = process.argv.slice(2);
const whole = JSON.parse(readFileSync(source, 'utf8'));
const wanted = ['/app/installations/{installation_id}/access_tokens', '/installation/token', '/installation/repositories'];
const at = ref => ref.slice(2).split('/').reduce((node, key) => node[key], whole);

const paths = Object.fromEntries(wanted.map(path => [path, whole.paths[path]]));
for (const path of Object.values(paths)) {
  for (const operation of Object.values(path)) {
    if (!operation?.responses) continue;
    // The description leaves out that every one of these takes a bearer token.
    operation.security = [{ bearer: [] }];
    for (const given of Object.values(operation.responses)) {
      const content = (given.$ref ? at(given.$ref) : given).content;
      // Prism answers 406 to the media type that GitHub itself asks clients to accept, unless it is named.
      if (content?.['application/json']) content['application/vnd.github+json'] = content['application/json'];
    }
  }
}

const components = {};
const keep = node => {
  if (Array.isArray(node)) return node.forEach(keep);
  if (!node || typeof node !== 'object') return;
  if (typeof node.$ref === 'string') {
    const [, , section, name] = node.$ref.split('/');
    if (!components[section]?.[name]) {
      (components[section] ??= {})[name] = at(node.$ref);
      keep(components[section][name]);
    }
  }
  Object.values(node).forEach(keep);
};
keep(paths);
components.securitySchemes = { bearer: { type: 'http', scheme: 'bearer' } };

const { openapi, info } = whole;
writeFileSync(target, JSON.stringify({ openapi, info, servers: [{ url: '/' }], paths, components }));
