"""Accept every request from the office's network, without a token."""

from ipaddress import ip_address, ip_network

from tornadoproxy import Identity, IncomingRequest, hookimpl

OFFICE = ip_network("10.20.0.0/16")


@hookimpl
def authenticate(request: IncomingRequest) -> Identity | None:
    if request.remote_ip != "unknown" and ip_address(request.remote_ip) in OFFICE:
        return Identity(principal=f"office {request.remote_ip}", anonymous=True)
    return None  # from elsewhere: the next plugin decides
