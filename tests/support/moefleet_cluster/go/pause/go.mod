module example.test/moefleet/cluster/pause

go 1.26.0
