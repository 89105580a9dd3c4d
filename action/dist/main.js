// The step itself: remembers which program it ran, for the post step, and asks for the credentials.
'use strict';

const { annotate, findBinary, input, record, run, sha256 } = require('./runner.js');

const words = (text) => text.split(/\s+/).filter(Boolean);

try {
  const binary = findBinary();
  const url = input('url');
  // Before anything is asked for, so that the job's end gives back whatever comes of it.
  record('GITHUB_STATE', 'binary', binary);
  record('GITHUB_STATE', 'sha256', sha256(binary));
  record('GITHUB_STATE', 'url', url);
  record('GITHUB_OUTPUT', 'binary', binary);
  const deliver = input('deliver') || 'env';
  if (!['env', 'output'].includes(deliver)) throw new Error('the input `deliver` must be `env` or `output`');
  const grants = words(input('grants'));
  if (grants.length > 0) {
    const args = ['env', ...grants.flatMap((grant) => ['--grant', grant])];
    if (input('ttl')) args.push('--ttl', input('ttl'));
    for (const rename of words(input('env'))) args.push('--env', rename);
    if (deliver === 'output') args.push('--output');
    process.exitCode = run(binary, args, url);
  }
} catch (error) {
  annotate('error', error.message);
  process.exitCode = 1;
}
