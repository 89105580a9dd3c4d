// The job's end: gives back everything that the job still holds, with the very program that the step ran.
// A credential that could not be given back is a warning: it ends by itself. A changed program is an error.
'use strict';

const { annotate, run, sha256 } = require('./runner.js');

const { STATE_binary: binary, STATE_sha256: expected, STATE_url: url } = process.env;

try {
  if (!binary || !expected) {
    // The step found no program, or failed where the runner keeps no state of failed steps; then `jobpass env`
    // itself gave back what it had.
    process.stdout.write('jobpass: the step took nothing that is still to be given back\n');
  } else if (sha256(binary) !== expected) {
    annotate('error', `${binary} is not the program that this job began with; it was not run, and what the job holds lives until it expires`);
    process.exitCode = 1;
  } else if (run(binary, ['revoke'], url) !== 0) {
    annotate('warning', 'not everything was given back; it lives until it expires, or until the server reaps it');
  }
} catch (error) {
  annotate('warning', `nothing was given back: ${error.message}`);
}
