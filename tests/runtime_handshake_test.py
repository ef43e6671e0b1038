"""Processes find and hear each other before JAX connects them."""

import socket
import threading
from typing import Any

from absl.testing import absltest, parameterized
from jax._src.clusters import cloud_tpu_cluster

from adanat_jax.errors import UserError
from adanat_jax.runtime import addresses, handshake, processes

FACTS = {'jax': '0.10.2', 'config.width': '8'}


class RendezvousTest(absltest.TestCase):
  def meet(
    self, *attendees: tuple[int, dict[str, str]], num: int, timeout: float
  ) -> list[str]:
    """Returns what each is told; '' if all is well."""
    address = f'localhost:{addresses.free_port()}'
    told = [''] * len(attendees)

    def attend(index: int) -> None:
      process, facts = attendees[index]
      try:
        handshake.meet(address, num, process, facts, timeout)
      except UserError as error:
        told[index] = str(error)

    threads = [
      threading.Thread(target=attend, args=(i,)) for i in range(len(attendees))
    ]
    for thread in reversed(threads):  # The first is the last to come.
      thread.start()
    for thread in threads:
      thread.join()
    # The port is free at once.
    with socket.create_server(('', int(address.split(':')[1]))):
      pass
    return told

  def test_long_facts_are_compared_to_the_end(self):
    long = 'a' * 70_000
    told = self.meet((0, {'x': long}), (1, {'x': long}), num=2, timeout=20)
    self.assertEqual(told, ['', ''])
    told = self.meet(
      (0, {'x': f'{long}b'}), (1, {'x': f'{long}c'}), num=2, timeout=20
    )
    self.assertLen(set(told), 1)
    self.assertRegex(told[0], r'x is \.\.\..* in process 0 \(.*\) and \.\.\.')
    many = {str(number): 'a' * 150 for number in range(1000)}
    with self.assertRaisesRegex(UserError, 'too long .* compare: 1000 values'):
      handshake.meet('localhost:1', 2, 1, many, 5)

  def test_all_come_and_agree(self):
    told = self.meet(*((i, FACTS) for i in range(3)), num=3, timeout=20)
    self.assertEqual(told, ['', '', ''])

  def test_all_hear_what_differs(self):
    other = FACTS | {'jax': '0.12.0'}
    told = self.meet((0, FACTS), (1, FACTS), (2, other), num=3, timeout=20)
    self.assertLen(set(told), 1)
    self.assertRegex(
      told[0], r'jax is 0.10.2 in process 0 \(.*\) and 0.12.0 in process 2 '
    )

  def test_a_number_given_twice(self):
    told = self.meet((0, FACTS), (1, FACTS), (1, FACTS), num=3, timeout=20)
    self.assertLen(set(told), 1)
    self.assertIn('two processes have --process_id=1', told[0])

  def test_nobody_presides(self):
    (told,) = self.meet((1, FACTS), num=2, timeout=0.5)
    self.assertRegex(told, r'no answer from process 0 at localhost:\d+ within')
    self.assertIn('Connection refused', told)

  def test_strangers_are_passed_over(self):
    address = f'localhost:{addresses.free_port()}'
    port = int(address.split(':')[1])
    told = []

    def preside() -> None:
      handshake.meet(address, 2, 0, FACTS, 20)
      told.append('all is well')

    thread = threading.Thread(target=preside)
    thread.start()
    sentences = [
      b'GET / HTTP/1.1\r\n',
      b'{"verdict": 1}\n',
      b'{"hello": "adanat_jax", "process": "1", "facts": []}\n',
    ]
    while sentences:
      try:
        with socket.create_connection(('localhost', port)) as stranger:
          stranger.sendall(sentences[0])
          del sentences[0]
      except ConnectionRefusedError:
        continue
    handshake.meet(address, 2, 1, FACTS, 20)
    thread.join()
    self.assertEqual(told, ['all is well'])

  def test_one_of_another_version_says_more(self):
    said = {'process': 1, 'host': 'h', 'mood': 'good', 'facts': {'jax': 9}}
    self.assertEqual(
      handshake.parse_attendee(said),
      handshake.Attendee(1, 'h', {'jax': '9'}),
    )

  def test_a_stranger_at_the_coordinators_port(self):
    with socket.create_server(('localhost', 0)) as server:
      port = server.getsockname()[1]

      def answer() -> None:
        connection, _ = server.accept()
        with connection:
          server.close()  # Once is enough.
          connection.sendall(b'SSH-2.0\r\n')

      thread = threading.Thread(target=answer, daemon=True)
      thread.start()
      with self.assertRaisesRegex(UserError, 'no answer from process 0'):
        handshake.meet(f'localhost:{port}', 2, 1, FACTS, 0.5)

  def test_a_port_in_use(self):
    with socket.create_server(('', 0)) as server:
      port = server.getsockname()[1]
      with self.assertRaisesRegex(
        UserError, f'localhost:{port}: .* started tw'
      ):
        handshake.meet(f'localhost:{port}', 2, 0, FACTS, 5)


class ClusterTest(parameterized.TestCase):
  def find(self, mode: str = 'auto', *given: Any) -> processes.Cluster | None:
    return processes.find_cluster(
      mode, *(given or (None, None, None)), timeout=5
    )

  def test_no_cluster(self):
    self.assertIsNone(self.find())
    self.assertIsNone(self.find('off', 'a:1', 2, 1))
    with self.assertRaisesRegex(
      UserError, 'coordinator_address=HOST:PORT is m'
    ):
      self.find('on')

  def test_what_is_given(self):
    found = self.find('auto', 'worker-0:8476', 4, 3)
    self.assertEqual(found, processes.Cluster('worker-0:8476', 4, 3))

  @parameterized.parameters(
    ('worker-0', 4, 3, 'HOST:PORT is needed'),
    ('worker-0:port', 4, 3, 'HOST:PORT is needed'),
    ('worker-0:1', 4, 4, 'process_id=4 of --num_processes=4'),
    ('worker-0:1', None, 1, '--num_processes=N is missing'),
    ('worker-0:1', 2, None, '--process_id=I is missing'),
    (None, 2, 1, 'coordinator_address=HOST:PORT is missing'),
  )
  def test_what_does_not_fit(
    self,
    address: str | None,
    num: int | None,
    process: int | None,
    message: str,
  ):
    with self.assertRaisesRegex(UserError, message):
      self.find('auto', address, num, process)

  @parameterized.named_parameters(
    (
      'slurm',
      {
        'SLURM_JOB_ID': '4097',
        'SLURM_STEP_NODELIST': 'gpu[07-08]',
        'SLURM_NTASKS': '{}',
        'SLURM_PROCID': '1',
        'SLURM_LOCALID': '0',
      },
      processes.Cluster('gpu07:61441', 2, 1, (0,)),
    ),
    (
      'open_mpi',
      {
        'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.1.0.1:34911',
        'OMPI_COMM_WORLD_SIZE': '{}',
        'OMPI_COMM_WORLD_RANK': '1',
        'OMPI_COMM_WORLD_LOCAL_RANK': '1',
      },
      processes.Cluster('10.96.0.1:62624', 2, 1, (1,)),
    ),
    (
      'tpu',
      {
        'TPU_WORKER_HOSTNAMES': '',
        'TPU_WORKER_ID': '1',
        'MEGASCALE_COORDINATOR_ADDRESS': '',
        'MEGASCALE_NUM_SLICES': '',
        'MEGASCALE_SLICE_ID': '',
      },
      processes.Cluster('localhost:8482', 2, 1),
    ),
  )
  def test_found_in_the_environment(
    self, template: dict[str, str], expected: processes.Cluster
  ):
    self.enter_context(
      absltest.mock.patch.object(
        cloud_tpu_cluster,
        'running_in_cloud_tpu_vm',
        'TPU_WORKER_ID' in template,
      )
    )
    for count in (2, 1):
      several = {'TPU_WORKER_HOSTNAMES': ','.join(['localhost'] * count)}
      environment = {
        name: several.get(name, text.format(count))
        for name, text in template.items()
      }
      with absltest.mock.patch.dict('os.environ', environment):
        self.assertEqual(self.find(), expected if count == 2 else None)

  def test_a_tpu_of_one_worker_needs_no_metadata_server(self):
    environment = {'TPU_WORKER_HOSTNAMES': 'localhost'}
    with (
      absltest.mock.patch.object(
        cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True
      ),
      absltest.mock.patch.dict(
        'os.environ', environment | {'TPU_SKIP_MDS_QUERY': '1'}
      ),
    ):
      self.assertIsNone(self.find())

  def test_asking_for_the_environment_fails(self):
    environment = {'TPU_WORKER_HOSTNAMES': 'localhost,localhost'}
    with (
      absltest.mock.patch.object(
        cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True
      ),
      absltest.mock.patch.dict('os.environ', environment),
      self.assertRaisesRegex(UserError, 'for a cluster failed .*=off runs'),
    ):
      self.find()


if __name__ == '__main__':
  absltest.main()
