from hypothesis import given
from hypothesis import strategies as st

from branchd.core.reconcile import Cancel, Consume, Scale, Work, reconcile
from branchd.core.spec import Autoscale
from branchd.core.values import QueueDeclaration

names = st.sets(st.sampled_from("abcdef"))


@given(names, names)
def test_doing_what_is_said_ends_in_what_is_wanted_and_never_without_a_consumer(wanted, consumed):
    work = Work(tuple(map(QueueDeclaration, sorted(wanted))), None)
    queues = set(consumed)
    for correction in reconcile(work, consumed, None):
        match correction:
            case Consume(queue):
                assert queue.name not in queues
                queues.add(queue.name)
            case Cancel(name):
                queues.remove(name)
        assert queues or not wanted
    assert queues == wanted
    assert reconcile(work, queues, None) == []


def test_what_nobody_asked_for_is_left_alone():
    assert reconcile(Work(None, None), {"celery"}, Autoscale(1, 9)) == []
    assert reconcile(Work(None, Autoscale(1, 2)), {"celery"}, None) == []  # its pool cannot


def test_bounds_follow():
    assert reconcile(Work(None, Autoscale(1, 2)), (), Autoscale(1, 3)) == [Scale(Autoscale(1, 2))]
    assert reconcile(Work(None, Autoscale(1, 2)), (), Autoscale(1, 2)) == []
