"""What a compiled function closes over is an argument of its program."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.runtime import closures, sharding


class CompiledTest(absltest.TestCase):
  def test_arrays_are_no_constants_and_shapes_are_traced_once(self):
    kernel = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    held, traces = jnp.asarray(kernel), []

    def function(x, more):
      traces.append(x.shape)
      # Loops have functions of their own.
      body = lambda x, _: (x @ held, None)
      return {'out': jax.lax.scan(body, x, None, length=2)[0], 'none': more}

    compiled = closures.Compiled(function, sharding.make_mesh())
    for rows in (3, 3, 5):
      x = np.ones((rows, 64), np.float32)
      found = compiled(x, None)
      np.testing.assert_allclose(
        found['out'], x @ kernel @ kernel, rtol=1e-4, atol=1e-3
      )
      self.assertIsNone(found['none'])
    self.assertEqual(traces, [(3, 64), (5, 64)])
    program = compiled.trace(x, None)
    text = program.func.lower(*program.args, x, None).as_text()
    self.assertLess(len(text), kernel.nbytes)


if __name__ == '__main__':
  absltest.main()
