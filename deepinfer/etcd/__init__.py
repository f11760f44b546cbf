"""A thin etcd v3 client on grpc.aio: ranges, transactions, leases and watches that tell the truth about failures."""
