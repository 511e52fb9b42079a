// Who is served next when several coordinators are busy at one node; time is made up.
#include "expert_node/fair_queue.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace atl::expert_node {
namespace {

// Clients that ask again `think` seconds after each answer, for `cost` seconds of work each time.
struct Client {
  std::string name;
  double cost = 1, think = 0;
  double due = 0;  // asks then
  bool waits = false;
  double served = 0, longest_wait = 0;  // without the first time, when nothing is known of it
};

// One server for `seconds`; what each got is left in the clients.
void serve(std::vector<Client>& clients, double seconds) {
  FairQueue<std::string, double> queue;  // items are when they were asked for
  double now = 0;
  while (now < seconds) {
    for (Client& client : clients) {
      if (client.waits || client.due > now) continue;
      queue.push(client.name, client.due);
      client.waits = true;
    }
    if (queue.empty()) {
      double next = seconds;
      for (const Client& client : clients) next = std::min(next, client.due);
      now = next;
      continue;
    }
    const auto [name, asked] = queue.pop();
    for (Client& client : clients) {
      if (client.name != name) continue;
      if (client.served > 0) client.longest_wait = std::max(client.longest_wait, now - asked);
      now += client.cost;
      client.served += client.cost;
      client.due = now + client.think;
      client.waits = false;
      queue.charge(name, client.cost);
    }
  }
}

TEST(FairQueue, two_busy_coordinators_get_equal_time_whatever_their_sizes) {
  std::vector<Client> clients = {{.name = "decode", .cost = 0.002},
                                 {.name = "prefill", .cost = 0.05}};
  serve(clients, 100);
  const double all = clients[0].served + clients[1].served;
  EXPECT_GT(clients[0].served / all, 0.45);
  EXPECT_GT(clients[1].served / all, 0.45);
}

TEST(FairQueue, who_asks_for_little_waits_for_one_dispatch_at_most) {
  std::vector<Client> clients = {{.name = "a", .cost = 0.05},
                                 {.name = "b", .cost = 0.05},
                                 {.name = "little", .cost = 0.001, .think = 0.2}};
  serve(clients, 100);
  EXPECT_LE(clients[2].longest_wait, 0.05 + 1e-9);
}

TEST(FairQueue, nobody_saves_time_up_while_idle) {
  FairQueue<char, int> queue;
  for (int i = 0; i < 100; ++i) {  // a is alone
    queue.push('a', i);
    EXPECT_EQ(queue.pop().first, 'a');
    queue.charge('a', 1);
  }
  // b was never served and is next once, not a hundred times.
  std::map<char, int> served;
  for (int i = 0; i < 4; ++i) queue.push('a', i), queue.push('b', i);
  for (int i = 0; i < 4; ++i) {
    const char client = queue.pop().first;
    ++served[client];
    queue.charge(client, 1);
  }
  EXPECT_EQ(served['a'], 2);
  EXPECT_EQ(served['b'], 2);
}

TEST(FairQueue, a_client_s_own_items_keep_their_order_and_go_with_it) {
  FairQueue<char, int> queue;
  for (int i = 0; i < 3; ++i) queue.push('a', i);
  queue.push('b', 7);
  std::vector<int> of_a;
  for (int i = 0; i < 3; ++i) {
    const auto [client, item] = queue.pop();
    if (client == 'a') of_a.push_back(item);
    queue.charge(client, 1);
  }
  EXPECT_EQ(of_a, (std::vector<int>{0, 1}));
  queue.remove('a');
  EXPECT_TRUE(queue.empty());
  queue.charge('a', 1);  // it went while it was served
}

}  // namespace
}  // namespace atl::expert_node
