"""Health checking and reflection beside CRI."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from virtlet.cli.playground import Playground


@pytest.mark.parametrize("service", ["", "runtime.v1.RuntimeService", "runtime.v1.ImageService"])
def test_a_manager_whose_hypervisor_answers_is_serving(node: Playground, service: str) -> None:
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_an_unknown_service_has_no_health(node: Playground) -> None:
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError, match="no service 'nobody' here"):
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)


def test_reflection_names_the_services(node: Playground) -> None:
    with grpc.insecure_channel(f"unix:{node.socket}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reply = next(stub.ServerReflectionInfo(iter([request]), timeout=5))
    names = {service.name for service in reply.list_services_response.service}
    assert {"runtime.v1.RuntimeService", "runtime.v1.ImageService"} <= names
    assert "grpc.health.v1.Health" in names
