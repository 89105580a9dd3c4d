// What both steps share: the jobpass program as a file that is known, and the runner's own files.
// Node's standard library only. Never looks into PATH, which any step may change.
'use strict';

const { createHash, randomBytes } = require('node:crypto');
const { accessSync, appendFileSync, constants, readFileSync, realpathSync, statSync } = require('node:fs');
const { spawnSync } = require('node:child_process');
const { isAbsolute, join, resolve } = require('node:path');

/** An input of the step; '' where it is not given. */
function input(name) {
  return (process.env[`INPUT_${name.toUpperCase()}`] || '').trim();
}

/** The absolute path of the jobpass program. Throws where there is none, with the places that were tried. */
function findBinary() {
  const named = input('binary') || process.env.JOBPASS_BINARY || '';
  const bin = join(__dirname, '..', 'bin');
  const candidates = named
    ? [isAbsolute(named) ? named : resolve(process.env.GITHUB_WORKSPACE || '.', named)]
    : [join(bin, `jobpass-${process.platform}-${process.arch}`), join(bin, 'jobpass')];
  for (const candidate of candidates) {
    try {
      accessSync(candidate, constants.X_OK);
      if (statSync(candidate).isFile()) return realpathSync(candidate);
    } catch {
      // The next candidate, or the error below.
    }
  }
  throw new Error(
    `there is no jobpass program at ${candidates.join(' or ')}; ` +
      'set the input `binary` (or the variable JOBPASS_BINARY) to its path',
  );
}

function sha256(path) {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

/** Appends a value to a file of the runner, such as GITHUB_STATE. */
function record(file, name, value) {
  const end = `jobpass_${randomBytes(16).toString('hex')}`;
  appendFileSync(process.env[file], `${name}<<${end}\n${value}\n${end}\n`);
}

/** Runs the program with this step's outputs. Returns its exit code. */
function run(binary, args, url) {
  const env = url ? { ...process.env, JOBPASS_URL: url } : process.env;
  const ended = spawnSync(binary, args, { env, stdio: 'inherit' });
  if (ended.error) throw ended.error;
  return ended.status === null ? 1 : ended.status;
}

/** A workflow command: its data must not end the line. */
function annotate(level, message) {
  const data = message.replaceAll('%', '%25').replaceAll('\r', '%0D').replaceAll('\n', '%0A');
  process.stdout.write(`::${level} title=jobpass::${data}\n`);
}

module.exports = { annotate, findBinary, input, record, run, sha256 };
