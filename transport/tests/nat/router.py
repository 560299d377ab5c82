"""A home router's translation of UDP, in a network namespace of its own.

    router.py KIND OUTSIDE DELAY_MS      kind: full-cone, address-restricted, port-restricted or symmetric

What comes from inside is routed to the device tun0, which this program reads. For each mapping it has an ordinary
UDP socket at the outside address, so that the rules are all there is here:

- mapping: a symmetric router has one port for each destination of a host's port, the others one for all;
- filtering: a full cone lets everything in, the others what comes from a host (and port) that was sent to.

It prints a line once it routes. With SIGUSR1 it becomes a full cone, with SIGUSR2 symmetric, and in either case forgets
its ports, as if another router were put in its place. Each packet is held for the delay, in both directions.
"""

import fcntl
import heapq
import ipaddress
import os
import selectors
import signal
import socket
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
UDP = 17
LARGEST = 65535


class Mapping:
    """A port of the router."""

    def __init__(self, outside, inner):
        self.inner = inner
        self.contacted = set()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((outside, 0))
        self.socket.setblocking(False)

    def lets_in(self, kind, source):
        if kind == "full-cone":
            return True
        if kind == "address-restricted":
            return any(host == source[0] for host, _ in self.contacted)
        return source in self.contacted


class Router:
    def __init__(self, kind, outside, delay):
        self.kind, self.outside, self.delay = kind, outside, delay
        self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.tun, selectors.EVENT_READ, None)
        self.mappings = {}
        # (when, number, what): the number keeps the order of equals.
        self.held, self.count = [], 0
        self.next_kind = None
        for number, other in ((signal.SIGUSR1, "full-cone"), (signal.SIGUSR2, "symmetric")):
            signal.signal(number, lambda _number, _frame, other=other: setattr(self, "next_kind", other))

    def replace(self):
        self.kind, self.next_kind = self.next_kind, None
        for mapping in self.mappings.values():
            self.selector.unregister(mapping.socket)
            mapping.socket.close()
        self.mappings.clear()

    def hold(self, action):
        self.count += 1
        heapq.heappush(self.held, (time.monotonic() + self.delay, self.count, action))

    def outward(self, packet):
        header = (packet[0] & 15) * 4
        if packet[0] >> 4 != 4 or packet[9] != UDP or len(packet) < header + 8:
            return
        source, destination = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
        source_port, destination_port, length = struct.unpack_from("!HHH", packet, header)
        inner, to = (source, source_port), (destination, destination_port)
        key = (inner, to if self.kind == "symmetric" else None)
        if key not in self.mappings:
            self.mappings[key] = Mapping(self.outside, inner)
            self.selector.register(self.mappings[key].socket, selectors.EVENT_READ, self.mappings[key])
        mapping = self.mappings[key]
        mapping.contacted.add(to)
        payload = packet[header + 8 : header + length]
        self.hold(lambda: mapping.socket.sendto(payload, to))

    def inward(self, mapping, payload, source):
        if not mapping.lets_in(self.kind, source):
            return
        length = 28 + len(payload)
        addresses = socket.inet_aton(source[0]) + socket.inet_aton(mapping.inner[0])
        header = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, UDP, 0) + addresses
        total = sum(struct.unpack("!10H", header))
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        # UDP may go without a checksum of its own.
        udp = struct.pack("!HHHH", source[1], mapping.inner[1], 8 + len(payload), 0)
        packet = header[:10] + struct.pack("!H", checksum) + header[12:] + udp + payload
        self.hold(lambda: os.write(self.tun, packet))

    def run(self):
        while True:
            wait = max(0.0, self.held[0][0] - time.monotonic()) if self.held else None
            ready = self.selector.select(wait)
            if self.next_kind:
                self.replace()
                continue
            for key, _ in ready:
                try:
                    if key.data is None:
                        self.outward(os.read(self.tun, LARGEST))
                    else:
                        self.inward(key.data, *key.data.socket.recvfrom(LARGEST))
                except OSError:
                    # An earlier packet could not be delivered.
                    continue
            while self.held and self.held[0][0] <= time.monotonic():
                try:
                    heapq.heappop(self.held)[2]()
                except OSError:
                    # Lost, as on any network.
                    continue


if __name__ == "__main__":
    ROUTER = Router(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3)
    print("ready", flush=True)
    ROUTER.run()
