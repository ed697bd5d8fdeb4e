"""A TCP server that streams pictures, or says nothing."""

import contextlib
import socket
import threading

import numpy as np


@contextlib.contextmanager
def server(answer):
    """A TCP server on a free port; `answer(connection, let_go)` runs for each connection, `let_go` is set at the end."""
    let_go, connections = threading.Event(), []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=guarded, args=(connection,), daemon=True).start()

    def guarded(connection):
        with contextlib.suppress(OSError), connection:
            answer(connection, let_go)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        let_go.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def silent(_connection, let_go):
    let_go.wait(60)


def mjpeg(frames):
    """A camera's multipart stream: so many frames, then silence with the connection open."""
    import cv2

    def answer(connection, let_go):
        connection.recv(4096)
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        for i in range(frames):
            rgb = np.full((48, 64, 3), (200, 40, 5 * i % 100), np.uint8)
            data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes()
            connection.sendall(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data))
        let_go.wait(60)

    return answer
